"""The engine: turns messages and parameters into chunks of a reply."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.content import TokenLogprob
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import (
    FinishReason,
    GenerationParams,
    Lane,
    Message,
    TemplateValue,
    Tool,
)
from turnmill.workers.turn.abort import Abort

#: What a turn gives the chat template, by name.
TemplateValues = Mapping[str, TemplateValue]
NO_VALUES: TemplateValues = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine is to answer."""

    messages: tuple[Message, ...]
    #: Text of the reply that an earlier attempt has already produced; the engine goes on
    #: right after it and does not repeat it.
    prefix: str = ""
    #: Turns of the interactive lane go before those of the batch lane.
    lane: Lane = Lane.INTERACTIVE
    #: Whose prompt it is. An engine that keeps what it computed of prompts never lets a prompt of
    #: one namespace find what another one's left: neither `cached_tokens` nor time may tell what
    #: others asked. Opaque to engines. Empty where all prompts are one tenant's.
    cache_namespace: str = ""
    #: Passed to the chat template, as `GenerationParams.template_kwargs`.
    template_kwargs: TemplateValues = field(default_factory=dict)
    #: Shown to the model, as `GenerationParams.tools`.
    tools: tuple[Tool, ...] = ()
    #: Passages that stand in the messages, numbered from 1.
    document_count: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A piece of a call of a tool; those with the same index are joined."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a reply while it is generated."""

    text: str
    #: Tokens generated for this piece.
    token_count: int = 0
    #: Set on the last chunk only.
    finish_reason: FinishReason | None = None
    #: Tokens of the rendered prompt; set on the last chunk only.
    prompt_tokens: int = 0
    #: Those of them that were not computed again, because the engine still had their keys and
    #: values; set on the last chunk only.
    cached_tokens: int = 0
    tool_calls: tuple[ToolCallPiece, ...] = ()
    #: Of its tokens, where the parameters ask for them.
    logprobs: tuple[TokenLogprob, ...] = ()


def refuse_template_kwargs(given: Collection[str], known: Collection[str] = ()) -> None:
    """Raise `InvalidInput` for a name that the model's chat template does not know."""
    for name in given:
        if name not in known:
            names = f"it knows {', '.join(sorted(known))}" if known else "it knows none"
            raise InvalidInput(
                f"'chat_template_kwargs.{name}' is not supported: the model's chat template does "
                f"not know it ({names}). Leave it out.",
                param="chat_template_kwargs",
            )


class Engine(Protocol):
    """One loaded model.

    Many threads call `generate` at once on one engine; batching them is the engine's
    business. Only errors of `turnmill.schemas.errors` leave an engine: `TransientError`
    (try the turn again) or `PermanentError` (fail the turn).
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; known once `start` returned. Without `continues` a prompt never has a
        prefix; without the others it never has what they name, but for images and files of
        earlier turns, which `Message.text` names.
        """
        ...

    @property
    def context_window(self) -> int:
        """Tokens that prompt and reply may take together; known once `start` returned."""
        ...

    @property
    def held(self) -> Mapping[str, float]:
        """What the running turns hold of the engine, by name: slots, requests, owed tokens.

        All are 0 when no turn runs; a value that is not has leaked. May be called from any thread.
        """
        ...

    def start(self) -> None:
        """Load the weights; the engine is ready when this returns."""
        ...

    def check(self) -> None:
        """Return if the engine takes turns now, as far as it can tell without one.

        Raises:
            EngineAway: it takes none, and may take some later.
            EngineDied: it will never take one again.
        """
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Count the tokens of the prompt as rendered for the model, the reply's opening and what
        an earlier attempt said of the reply included.

        Raises:
            Interrupted: it takes a call to a server, and the abort that is heeded (`heeding`) was
                set meanwhile.
            InvalidInput: the chat template refuses the messages or does not know a name.
        """
        ...

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        """Yield the reply piece by piece; the last chunk carries finish_reason and usage.

        `params` is complete (nothing but the seed is None). Once `abort` is set the
        iteration ends within a token or two, without a last chunk.

        Raises:
            ContextOverflow: the prompt leaves no room for a reply.
            InvalidInput: the chat template refuses the messages or does not know a name.
            EngineAway: the engine takes no turns now; uses up no attempt.
            EngineBrokeOff: it ran out of memory, or its connection broke, during the turn.
            EngineUnavailable: the engine failed at this turn, and may do better next time.
            EngineDied: it will answer no more turns; the process ends, for a fresh one.
            EngineFailure: the engine cannot answer this prompt.
        """
        ...

    def close(self) -> None:
        """Stop generating and free the weights; idempotent."""
        ...

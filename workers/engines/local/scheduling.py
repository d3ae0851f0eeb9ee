"""What passes between the threads that wait for tokens and the one that steps the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

from turnmill.schemas.capabilities import PLAIN
from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.turns import FinishReason, GenerationParams, Lane
from turnmill.workers.engines.local.seeing import Eyes
from turnmill.workers.engines.text.call_form import CallForm

#: What `prefill_tokens` is when left out.
PREFILL_TOKENS = 256
#: And where a CPU computes prompts in one step with the running turns' next tokens: prompts and
#: replies then come to an end about together, and interactive turns wait for short steps.
CPU_PREFILL_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Token:
    """One step of one turn."""

    id: int
    #: "stop": this is the model's end token, which has no text.
    finish_reason: FinishReason | None = None
    #: Where the turn asks for them: its natural log-probability, then those of the likeliest
    #: tokens, each with its token.
    logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, slots=True)
class Generation:
    """One turn on its way through the batch."""

    prompt_ids: Sequence[int]
    #: Tokens to generate, at most.
    limit: int
    params: GenerationParams
    lane: Lane = Lane.INTERACTIVE
    #: As `Prompt.cache_namespace`.
    namespace: str = ""
    #: What the reply is held to, ...
    held_to: ResponseFormat | CallForm | None = None
    #: ... and what of that the prompt ends with.
    prefix: str = ""
    #: From the scheduler to the waiting thread; an error or None is the last one.
    events: "SimpleQueue[Token | TurnmillError | None]" = field(default_factory=SimpleQueue)
    #: Tokens of the prompt that the batch did not compute again; known with the last token.
    cached_tokens: int = 0
    #: The prompt with its images, as `Seen.inputs`; None: it has none. The scheduler takes it.
    inputs: object = None
    #: Nobody waits for tokens any more: `Batch.drop_unwanted` takes it out.
    is_unwanted: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loaded model says of itself."""

    #: Tokens of prompt and reply together.
    context_window: int
    #: A token's id is below it.
    vocabulary_size: int
    #: Where it runs, and in what numbers; for the log.
    device: str = "cpu"
    dtype: str = "auto"
    #: As `Capabilities`.
    formats: frozenset[str] = frozenset({"text"})
    #: Whether it holds replies to schemas as wide as accept takes them.
    wide_formats: bool = True
    continues_formats: bool = False
    logprobs: bool = False
    logit_bias: bool = False
    penalties: frozenset[str] = PLAIN.penalties
    #: None: the model does not see.
    eyes: Eyes | None = None


class Scheduler(Protocol):
    """Takes turns in from many threads, and gives each its tokens."""

    @property
    def facts(self) -> Facts:
        """Of the model, once it is loaded. Raises what loading it raised."""
        ...

    @property
    def held(self) -> Mapping[str, float]:
        """As `Engine.held`."""
        ...

    def check(self) -> None:
        """As `Engine.check`."""
        ...

    def submit(self, generation: Generation) -> None:
        """Raises `EngineAway` once it is closed or has died: the turn was never in it."""
        ...

    def give_up(self, generation: Generation) -> None:
        """Nobody waits for it any more; nothing to one that has ended."""
        ...

    def close(self) -> None:
        """Tell all who wait, and end."""
        ...


class Batch(Protocol):
    """The model and the turns it works on. Only one thread calls it."""

    @property
    def is_busy(self) -> bool:
        """There is something to step."""
        ...

    @property
    def held(self) -> Mapping[str, float]:
        """As `Engine.held`."""
        ...

    def admit(self, generation: Generation) -> None:
        """Take a turn in. What it raises fails this turn only."""
        ...

    def drop_unwanted(self) -> None:
        """No step computes anything for unwanted turns any more."""
        ...

    def step(self) -> None:
        """Generate a token for each turn that has a slot. What it raises ends the engine."""
        ...

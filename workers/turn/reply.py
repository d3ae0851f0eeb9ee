"""A reply while its chunks come, and whether the whole meets the format that its turn asks for."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import structlog
from pydantic import ValidationError

from turnmill.schemas.content import TokenLogprob, ToolCall
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.formats.calls import demanded_tools, find_call_fault, is_held_to
from turnmill.schemas.formats.checking import find_fault
from turnmill.schemas.outcomes import Failed
from turnmill.schemas.turns import FinishReason, GenerationParams, Message, Reply, Role, Usage
from turnmill.workers.consumer.metrics import FORMATS
from turnmill.workers.engines.base import Chunk, Prompt, ToolCallPiece

log = structlog.get_logger()


class ReplyDraft:
    """Joins chunks. Text continues that of earlier attempts; tool calls restart."""

    def __init__(
        self, kept_text: str, kept_tokens: int, offered: Collection[str] | None = None
    ) -> None:
        """`offered`: the names of the turn's tools (None: not known). Calls of others are left out,
        whoever asked the model or its server for them.
        """
        self._offered = offered
        self._texts = [kept_text]
        self._token_count = kept_tokens
        self._calls: dict[int, list[ToolCallPiece]] = {}
        self._logprobs: list[TokenLogprob] = []

    def add(self, chunk: Chunk) -> None:
        self._texts.append(chunk.text)
        self._token_count += chunk.token_count
        self._logprobs += chunk.logprobs
        for piece in chunk.tool_calls:
            self._calls.setdefault(piece.index, []).append(piece)

    def _is_offered(self, call: ToolCall) -> bool:
        return self._offered is None or call.name in self._offered

    def reply(self, last: Chunk, finish_reason: FinishReason, prompt_tokens: int) -> Reply:
        """The reply, whose last chunk has been added."""
        joined = [_joined(self._calls[index]) for index in sorted(self._calls)]
        calls = tuple(call for call in joined if self._is_offered(call))
        if len(calls) < len(joined):
            log.warning("reply.tool_not_offered", call_count=len(joined) - len(calls))
        if finish_reason == "tool_calls" and not calls:
            finish_reason = "stop"
        return Reply(
            content="".join(self._texts),
            finish_reason=finish_reason,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=self._token_count,
                cached_tokens=last.cached_tokens,
            ),
            tool_calls=calls,
            logprobs=tuple(self._logprobs),
        )


def _joined(pieces: list[ToolCallPiece]) -> ToolCall:
    try:
        return ToolCall(
            id="".join(piece.id for piece in pieces),
            name="".join(piece.name for piece in pieces),
            # Clients read JSON, and some models write nothing for a tool without parameters.
            arguments="".join(piece.arguments for piece in pieces) or "{}",
        )
    except ValidationError:  # whose text would repeat the reply
        raise EngineFailure("The model's call of a tool is too long.") from None


@dataclass(frozen=True, slots=True)
class NotMet:
    """A whole reply that does not meet its turn's format, or calls tools as it should not."""

    reply: Reply
    #: Without a word of the reply.
    reason: str
    #: Where the turn asks for what it does not meet.
    field: str = "response_format"

    def corrected(self, prompt: Prompt) -> Prompt:
        """The prompt with the reply and what is wrong with it, for another reply from the start."""
        wish = (
            f"This reply cannot be used: {self.reason}. Reply again with nothing but what was "
            "asked for, in its form."
        )
        calls = self.reply.tool_calls
        said = Message(role=Role.ASSISTANT, content=self.reply.content, tool_calls=calls)
        answers = [
            Message(role=Role.TOOL, content=wish, tool_call_id=call.id) for call in calls
        ] or [Message(role=Role.USER, content=wish)]
        return replace(prompt, messages=(*prompt.messages, said, *answers), prefix="")

    def charged(self, reply: Reply) -> Reply:
        """The reply that came after it, with the tokens of both."""
        usage = Usage(
            prompt_tokens=self.reply.usage.prompt_tokens + reply.usage.prompt_tokens,
            completion_tokens=self.reply.usage.completion_tokens + reply.usage.completion_tokens,
            cached_tokens=self.reply.usage.cached_tokens + reply.usage.cached_tokens,
        )
        return reply.model_copy(update={"usage": usage})

    def failed(self) -> Failed:
        return Failed(
            "format_not_met",
            f"The reply does not meet '{self.field}', nor did the one before it: {self.reason}. "
            "Ask again, make the schema simpler, or choose a model that keeps to it.",
        )


def judged(reply: Reply, params: GenerationParams) -> NotMet | None:
    """None where the reply has the form that its turn asks for, or is cut, as with OpenAI."""
    demanded = {tool.name for tool in demanded_tools(params)}
    if reply.finish_reason not in ("stop", "tool_calls"):
        if demanded or params.response_format is not None:
            FORMATS.labels("cut").inc()
        return None
    reason: str | None
    if demanded and reply.finish_reason != "tool_calls":
        field, reason = "tool_choice", "it calls no tool"
    elif demanded and any(call.name not in demanded for call in reply.tool_calls):
        # Servers are not bound by what is passed on to them.
        field, reason = "tool_choice", "it calls another tool than the one that is to be called"
    elif reply.finish_reason == "tool_calls":
        if not any(is_held_to(call.name, params) for call in reply.tool_calls):
            return None
        field, reason = "tools", find_call_fault(reply.tool_calls, params)
    elif params.response_format is not None:
        field, reason = "response_format", find_fault(params.response_format, reply.content)
    else:
        return None
    FORMATS.labels("met" if reason is None else "not_met").inc()
    return None if reason is None else NotMet(reply, reason, field)

"""A turn in OpenAI's shapes: the whole completion, and the chunks of a stream."""

from dataclasses import dataclass
from uuid import UUID

from turnmill.schemas.openai import (
    Annotation,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    Delta,
    ReplyExtension,
    ReplyMessage,
    ReplyToolCall,
    StreamExtension,
)
from turnmill.schemas.turns import FinishReason, Reply


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """What all pieces of the answer to one call have in common."""

    turn_id: UUID
    #: The model as the client called it: a bot's name.
    model: str
    #: The call had an idempotency key.
    may_repeat: bool
    #: The stream ends with a chunk that has the usage.
    wants_usage: bool

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.turn_id.hex}"

    @property
    def created(self) -> int:
        """When the turn was accepted: its id (UUIDv7) begins with the milliseconds."""
        return (self.turn_id.int >> 80) // 1000

    def completion(self, reply: Reply) -> ChatCompletion:
        calls = [ReplyToolCall.of(call) for call in reply.tool_calls]
        message = ReplyMessage(
            content=reply.content or (None if calls else ""),
            annotations=Annotation.all_of(reply),
            tool_calls=calls,
        )
        logprobs = ChoiceLogprobs.of(reply.logprobs)
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=(
                Choice(message=message, logprobs=logprobs, finish_reason=reply.finish_reason),
            ),
            usage=CompletionUsage.of(reply.usage),
            turnmill=ReplyExtension.of(reply),
        )

    def opening(self) -> str:
        return self._chunk(Delta(role="assistant", content=""))

    def text(self, text: str) -> str:
        return self._chunk(Delta(content=text))

    def restart(self) -> str:
        return self._chunk(Delta(), extension=StreamExtension(restarted=True))

    def calls(self, reply: Reply) -> str:
        """The calls of tools, which are whole when the reply is committed.

        Before the ending: OpenAI's helpers look at what came before the finish reason.
        """
        calls = [ReplyToolCall.of(call, index) for index, call in enumerate(reply.tool_calls)]
        return self._chunk(Delta(tool_calls=calls))

    def ending(self, reply: Reply) -> str:
        """The last piece of the reply."""
        found = Annotation.all_of(reply)
        delta = Delta(annotations=found) if found else Delta()
        return self._chunk(
            delta,
            reply.finish_reason,
            StreamExtension.of(reply),
            ChoiceLogprobs.of(reply.logprobs),
        )

    def usage(self, reply: Reply) -> str:
        chunk = ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=(),
            usage=CompletionUsage.of(reply.usage),
        )
        return chunk.model_dump_json(exclude={"turnmill"})

    def _chunk(
        self,
        delta: Delta,
        finish_reason: FinishReason | None = None,
        extension: StreamExtension | None = None,
        logprobs: ChoiceLogprobs | None = None,
    ) -> str:
        choice = ChunkChoice(delta=delta, finish_reason=finish_reason, logprobs=logprobs)
        chunk = ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=(choice,),
            turnmill=extension,
        )
        # A delta has only the fields that changed; `usage` is null where usage was asked for.
        given = {*Delta.model_fields} - delta.model_fields_set
        return chunk.model_dump_json(
            exclude={
                "choices": {0: {"delta": given}},
                **({} if self.wants_usage else {"usage": True}),
                **({} if extension else {"turnmill": True}),
            }
        )

"""A chat completion as it is answered, whole and in chunks."""

from collections.abc import Iterable
from typing import Literal

from pydantic import (
    BaseModel,
    Field,
)

from turnmill.schemas.content import (
    TokenLogprob,
    ToolCall,
)
from turnmill.schemas.turns import (
    FinishReason,
    Usage,
)


class PromptTokensDetails(BaseModel):
    #: Tokens that the engine remembered from earlier prompts and did not compute again.
    cached_tokens: int


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: Usage) -> "CompletionUsage":
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        )


class FunctionCall(BaseModel):
    name: str
    arguments: str


class ReplyToolCall(BaseModel):
    #: In a stream only.
    index: int | None = Field(default=None, exclude_if=lambda index: index is None)
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def of(cls, call: ToolCall, index: int | None = None) -> "ReplyToolCall":
        function = FunctionCall(name=call.name, arguments=call.arguments)
        return cls(id=call.id, function=function, index=index)


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]

    @classmethod
    def of(cls, token: str, logprob: float) -> "TopLogprob":
        return cls(token=token, logprob=logprob, bytes=list(token.encode()))


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[ContentLogprob]

    @classmethod
    def of(cls, tokens: Iterable[TokenLogprob]) -> "ChoiceLogprobs | None":
        content = [
            ContentLogprob(
                **TopLogprob.of(each.text, each.logprob).model_dump(),
                top_logprobs=[TopLogprob.of(*pair) for pair in each.top],
            )
            for each in tokens
        ]
        return cls(content=content) if content else None


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ReplyToolCall] = Field(default=[], exclude_if=lambda calls: not calls)


class Choice(BaseModel):
    index: Literal[0] = 0
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice]
    usage: CompletionUsage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ReplyToolCall] | None = None


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None


class StreamExtension(BaseModel):
    """What OpenAI's streams have no word for; their clients pass it on unread."""

    restarted: bool = Field(
        description="The texts so far are void: the reply begins again after this chunk."
    )


class ChatCompletionChunk(BaseModel):
    """One event of `POST /v1/chat/completions` with `stream: true`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: CompletionUsage | None = None
    turnmill: StreamExtension | None = None

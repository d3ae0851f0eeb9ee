"""A chat completion as it is answered, whole and in chunks."""

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import (
    BaseModel,
    Field,
)

from turnmill.schemas.citations.sources import ReplySource
from turnmill.schemas.content import (
    TokenLogprob,
    ToolCall,
    token_bytes,
)
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.store.memory.remembered import Remembered
from turnmill.schemas.turns import (
    FinishReason,
    Reply,
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
    #: Those of consecutive tokens make the text; None: they are not known.
    bytes: list[int] | None

    @classmethod
    def of(cls, token: str, logprob: float) -> "TopLogprob":
        raw = token_bytes(token)
        return cls(token=token, logprob=logprob, bytes=None if raw is None else list(raw))


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


class UrlCitation(BaseModel):
    """Where a text cites a page, in Unicode code points of the text; `end_index` is exclusive."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation

    @classmethod
    def all_of(cls, reply: Reply) -> "list[Annotation]":
        """Where a reply cites documents that have an address."""
        found = {source.index: source for source in reply.sources}
        return [
            cls(
                url_citation=UrlCitation(
                    start_index=each.start, end_index=each.end, title=source.title, url=source.url
                )
            )
            for each in reply.citations
            if (source := found[each.number]).url is not None
        ]


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[Annotation] = Field(default=[], exclude_if=lambda found: not found)
    tool_calls: list[ReplyToolCall] = Field(default=[], exclude_if=lambda calls: not calls)


class Choice(BaseModel):
    index: Literal[0] = 0
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ReplyExtension(BaseModel):
    """What OpenAI's replies have no word for; their clients pass it on unread."""

    sources: list[ReplySource] = Field(
        default=[],
        exclude_if=lambda found: not found,
        description="The passages that the reply could cite, each with its number.",
    )

    verdict: Verdict | None = Field(
        default=None,
        exclude_if=lambda verdict: verdict is None,
        description="What became of the question that the bot's collection was asked.",
    )

    remembered: Remembered | None = Field(
        default=None,
        exclude_if=lambda remembered: remembered is None,
        description="What the turn was told of its user, with the turns that facts come from.",
    )

    @classmethod
    def of(cls, reply: Reply) -> Self | None:
        told = reply.remembered if reply.remembered and reply.remembered.text else None
        if not reply.sources and reply.verdict is None and told is None:
            return None
        return cls(sources=list(reply.sources), verdict=reply.verdict, remembered=told)


class ChatCompletion(BaseModel):
    """Answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice]
    usage: CompletionUsage
    turnmill: ReplyExtension | None = Field(default=None, exclude_if=lambda given: given is None)


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    annotations: list[Annotation] | None = None
    tool_calls: list[ReplyToolCall] | None = None


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None


class StreamExtension(ReplyExtension):
    """What OpenAI's streams have no word for; their clients pass it on unread."""

    restarted: bool = Field(
        default=False,
        description="The texts so far are void: the reply begins again after this chunk.",
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

"""The bodies of OpenAI's chat completions API, as far as Turnmill speaks it.

Nothing that would change the reply is ignored in silence: a field Turnmill cannot honour is
refused by name, one that has no bearing on the reply is accepted, and one that nobody knows
is an error. Everything is bounded here, before it meets a queue or a database.

https://platform.openai.com/docs/api-reference/chat
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import (
    MAX_MESSAGE_CHARS,
    MAX_MESSAGES,
    FinishReason,
    GenerationParams,
    Message,
    Role,
    Stop,
    Usage,
    refuse_nul,
)

#: Characters of a field's name that an error message repeats.
MAX_SHOWN_NAME = 100


def _join_parts(content: object) -> object:
    """Content as one string: OpenAI also takes a list of parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind not in (None, "text"):
            raise PydanticCustomError("not_supported", "Only parts of type 'text' are supported")
        if kind is None or not isinstance(text, str):
            raise PydanticCustomError("part", "A part looks like {'type': 'text', 'text': '…'}")
        texts.append(text)
    return "\n".join(texts)


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop or []


def _unless(*harmless: object) -> BeforeValidator:
    """Refuse a field whose value asks for something that Turnmill does not do."""

    def refuse(value: object) -> object:
        # By type too: in Python False == 0 and True == 1.
        if any(type(value) is type(item) and value == item for item in (None, *harmless)):
            return value
        raise PydanticCustomError("not_supported", "Not supported")

    return BeforeValidator(refuse)


Text = Annotated[
    str,
    BeforeValidator(_join_parts, json_schema_input_type=str | list[dict[str, str]]),
    StringConstraints(max_length=MAX_MESSAGE_CHARS),
    AfterValidator(refuse_nul),
]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ChatMessage(_Body):
    """One message of a chat completion."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text = Field(description="A string, or a list of text parts; they are joined by \\n.")

    # A reply that is sent back as history carries these; they say nothing to the model.
    name: Any = None
    annotations: Any = None
    refusal: Annotated[Any, _unless("")] = None
    tool_calls: Annotated[Any, _unless([])] = None
    function_call: Annotated[Any, _unless()] = None
    audio: Annotated[Any, _unless()] = None

    def message(self) -> Message:
        role = Role.SYSTEM if self.role == "developer" else Role(self.role)
        return Message(role=role, content=self.content)


class StreamOptions(_Body):
    include_usage: bool = Field(default=False, description="End with a chunk that has the usage.")
    include_obfuscation: Any = None


class ChatCompletionRequest(_Body):
    """Body of `POST /v1/chat/completions`."""

    model: str = Field(
        min_length=1, max_length=200, description="The name of the bot that answers."
    )
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1, le=131_072)
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=131_072, description="The newer name of max_tokens; it wins."
    )
    stop: Annotated[
        list[Stop],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None),
    ] = Field(default=[], max_length=4)
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    # Accepted; the reply does not depend on them.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    # Refused, unless they ask for what Turnmill does anyway.
    n: Annotated[Any, _unless(1)] = None
    tools: Annotated[Any, _unless([])] = None
    tool_choice: Annotated[Any, _unless("none", "auto")] = None
    functions: Annotated[Any, _unless([])] = None
    function_call: Annotated[Any, _unless("none", "auto")] = None
    logprobs: Annotated[Any, _unless(False)] = None
    top_logprobs: Annotated[Any, _unless(0)] = None
    logit_bias: Annotated[Any, _unless({})] = None
    frequency_penalty: Annotated[Any, _unless(0, 0.0)] = None
    presence_penalty: Annotated[Any, _unless(0, 0.0)] = None
    response_format: Annotated[Any, _unless({"type": "text"})] = None
    modalities: Annotated[Any, _unless(["text"], [])] = None
    audio: Annotated[Any, _unless()] = None
    moderation: Annotated[Any, _unless()] = None
    web_search_options: Annotated[Any, _unless()] = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def turn_messages(self) -> tuple[Message, ...]:
        return tuple(message.message() for message in self.messages)

    def params(self) -> GenerationParams:
        return GenerationParams(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            stop=tuple(self.stop),
            seed=self.seed,
        )


def parse_chat_request(body: bytes) -> ChatCompletionRequest:
    """Read a body. Raises `InvalidInput` naming the field at fault, never repeating its value."""
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _invalid(first) from None


def _invalid(error: ErrorDetails) -> InvalidInput:
    param = _path(error["loc"])
    match error["type"]:
        case "json_invalid":
            reason = error["msg"].removeprefix("Invalid JSON: ")
            return InvalidInput(f"The body is not valid JSON: {reason}.")
        case "extra_forbidden":
            return InvalidInput(f"Unrecognized request argument supplied: {param}", param=param)
        case "missing":
            return InvalidInput(f"Missing required parameter: '{param}'.", param=param)
        case "not_supported" if error["msg"] == "Not supported":
            return InvalidInput(f"'{param}' is not supported with this value.", param=param)
    if param is None:
        return InvalidInput("The body must be a JSON object.")
    return InvalidInput(f"Invalid '{param}': {error['msg']}.", param=param)


def _path(location: Iterable[int | str]) -> str | None:
    """`messages[0].content`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:MAX_SHOWN_NAME]}"
    return path.lstrip(".") or None


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


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: Literal[0] = 0
    message: ReplyMessage
    logprobs: None = None
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


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    logprobs: None = None
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


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "turnmill"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    turn_id: str | None = Field(default=None, description="The turn it is about, if accepted.")


class ErrorBody(BaseModel):
    """Every error looks like this."""

    error: ErrorDetail

"""The bodies of OpenAI's chat completions API, as far as Turnmill speaks it.

Nothing that would change the reply is ignored in silence: a field Turnmill cannot honour is
refused by name, one that has no bearing on the reply is accepted, and one that nobody knows
is an error. Everything is bounded here, before it meets a queue or a database, the work of
finding out what is wrong with a body included.

https://platform.openai.com/docs/api-reference/chat
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from turnmill.schemas.content import (
    MAX_DOCUMENTS,
    MAX_TOOL_CALLS,
    MediaPart,
    Name,
    Part,
    Text,
    TextPart,
    TokenLogprob,
    ToolCall,
    read_content,
    refuse_nul,
)
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.json_size import has_more_values
from turnmill.schemas.turns import (
    MAX_MESSAGES,
    MAX_TOOLS,
    FinishReason,
    GenerationParams,
    Message,
    ResponseFormat,
    Role,
    Stop,
    TemplateKwargs,
    Tool,
    Usage,
)

#: JSON values of a body, keys included. Texts count as one; a body of 512 messages and some tools
#: has a few thousand.
MAX_VALUES = 50_000
#: Mistakes that an error message tells.
MAX_SHOWN_MISTAKES = 3
#: Characters of a field's name that an error message repeats.
MAX_SHOWN_NAME = 100

_BOM = b"\xef\xbb\xbf"


def _read_content(content: object) -> str | tuple[Part, ...]:
    """Text, or parts in OpenAI's shapes. Parts that are all text are joined."""
    if not isinstance(content, list):
        return read_content(content)
    parts = [_part(each) for each in content]
    if all(isinstance(part, TextPart) for part in parts):
        return read_content("\n".join(part.text for part in parts if isinstance(part, TextPart)))
    return read_content(parts)


def _part(part: object) -> TextPart | MediaPart:
    match part:
        case {"type": "text", "text": str(text)}:
            return TextPart.model_construct(text=text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _media("image", url=url)
        case {"type": "file", "file": {"file_id": str(file_id)}}:
            return _media("file", file_id=file_id)
        case {"type": str(kind)} if kind != "text":
            raise PydanticCustomError(
                "not_supported",
                "Only parts of type 'text', 'image_url' with a URL, and 'file' with a file_id are "
                "supported",
            )
    raise PydanticCustomError("part", "A part looks like {{'type': 'text', 'text': '…'}}")


def _media(kind: Literal["image", "file"], **source: str) -> MediaPart:
    try:
        return MediaPart(type=kind, **source)
    except ValidationError:
        raise PydanticCustomError(
            "not_supported", "A picture is supported by its URL (https://…), a file by its id"
        ) from None


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def _as_integer(number: object) -> object:
    """JSON does not tell 16.0 from 16, and some clients have floats only."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _as_seed(number: object) -> object:
    """OpenAI's seeds are signed; engines take the same 64 bits without the sign."""
    number = _as_integer(number)
    is_signed = isinstance(number, int) and -(2**63) <= number < 0
    return number % 2**63 if is_signed else number  # type: ignore[operator]


def _read_format(value: object) -> object:
    if value == {"type": "text"}:
        return None
    return ResponseFormat.model_validate(value) if isinstance(value, dict) else value


def _check_choice(choice: object) -> object:
    match choice:
        case (
            None | "none" | "auto" | "required" | {"type": "function", "function": {"name": str()}}
        ):
            return choice
    raise PydanticCustomError("not_supported", "Not supported")


class _Unless:
    """Refuse a field, unless its value asks for nothing that Turnmill does not do."""

    def __init__(self, *harmless: object) -> None:
        self._harmless = (None, *harmless)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._refuse, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self._harmless]}

    def _refuse(self, value: object) -> object:
        # In Python False == 0 and True == 1.
        if any(
            value == item and isinstance(value, bool) == isinstance(item, bool)
            for item in self._harmless
        ):
            return value
        raise PydanticCustomError("not_supported", "Not supported")


Content = Annotated[
    str | tuple[Part, ...],
    WrapValidator(
        lambda value, _: _read_content(value), json_schema_input_type=str | list[dict[str, Any]]
    ),
]

Tokens = Annotated[int, BeforeValidator(_as_integer), Field(ge=1, le=131_072)]


class _Body(BaseModel):
    """An object of a request. A field it does not know is one mistake, however many there are."""

    model_config = ConfigDict(
        frozen=True, strict=True, json_schema_extra={"additionalProperties": False}
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, body: object) -> object:
        if isinstance(body, dict) and not cls._is_open(body):
            unknown = [name for name in body if name not in cls.model_fields]
            if unknown:
                names = [_shown(name) for name in unknown[:MAX_SHOWN_MISTAKES]]
                context = {"names": names, "more": len(unknown) - len(names)}
                raise PydanticCustomError("unknown_field", "Unknown", context)
        return body

    @classmethod
    def _is_open(cls, body: dict[str, Any]) -> bool:
        return False


class CalledFunction(_Body):
    name: Name
    arguments: str = ""


class ChatToolCall(_Body):
    """A call that a model asked for, as its reply had it."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = None

    def call(self) -> ToolCall:
        return ToolCall(id=self.id, name=self.function.name, arguments=self.function.arguments)


class OfferedFunction(_Body):
    name: Annotated[Name, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OfferedTool(_Body):
    type: Literal["function"]
    function: OfferedFunction


class ChatMessage(_Body):
    """One message of a chat completion.

    An assistant's message is history, and SDKs append to it what else they know of a reply
    (`parsed`, `reasoning_content`, `provider_specific_fields`, …): it may have any field.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = Field(
        description="A string, or a list of parts. Parts that are all text are joined by \\n."
    )

    # These say nothing to the model.
    id: Any = None
    name: Any = None
    cache_control: Any = None
    annotations: Any = None
    refusal: Annotated[Any, _Unless("")] = None
    tool_calls: list[ChatToolCall] | None = Field(default=None, max_length=MAX_TOOL_CALLS)
    tool_call_id: Name | None = None
    function_call: Annotated[Any, _Unless()] = None
    audio: Annotated[Any, _Unless()] = None

    @model_validator(mode="before")
    @classmethod
    def _read_empty(cls, body: object) -> object:
        """OpenAI's replies have `content: null` where there is no text."""
        if isinstance(body, dict) and body.get("role") == "tool" and not body.get("tool_call_id"):
            raise PydanticCustomError("tool_call", "A message of a tool needs its tool_call_id")
        if isinstance(body, dict) and cls._is_open(body) and body.get("content") is None:
            return body | {"content": ""}
        return body

    @classmethod
    def _is_open(cls, body: dict[str, Any]) -> bool:
        return body.get("role") == "assistant"

    def message(self) -> Message:
        role = Role.SYSTEM if self.role == "developer" else Role(self.role)
        return Message(
            role=role,
            content=self.content,
            tool_calls=tuple(call.call() for call in self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
        )


class ChatDocument(_Body):
    """A passage for this turn alone."""

    text: Text
    title: Name = ""


class StreamOptions(_Body):
    include_usage: bool = Field(default=False, description="End with a chunk that has the usage.")
    include_obfuscation: Any = None
    continuous_usage_stats: Any = None


class ChatCompletionRequest(_Body):
    """Body of `POST /v1/chat/completions`."""

    model: Annotated[str, AfterValidator(refuse_nul)] = Field(
        min_length=1, max_length=200, description="The name of the bot that answers."
    )
    messages: Annotated[list[ChatMessage], FailFast()] = Field(
        min_length=1, max_length=MAX_MESSAGES
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = Field(
        default=None, description="The newer name of max_tokens; it wins."
    )
    stop: Annotated[
        list[Stop] | None,
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None),
    ] = Field(
        default=None, max_length=4, description="An empty list takes back the bot's own strings."
    )
    seed: Annotated[int | None, BeforeValidator(_as_seed)] = Field(default=None, ge=0, lt=2**63)
    #: Not OpenAI's, but vLLM's and many others'.
    top_k: Annotated[int | None, BeforeValidator(_as_integer)] = Field(
        default=None, ge=-1, lt=2**31, description="0 or -1: all tokens."
    )
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    chat_template_kwargs: TemplateKwargs | None = Field(
        default=None,
        description="Passed to the model's chat template, which must know each name: "
        '`{"enable_thinking": false}`.',
    )

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

    # Refused by accept, unless a live worker's engine can do it (`schemas/capabilities.py`), ...
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    response_format: Annotated[
        ResponseFormat | None, BeforeValidator(_read_format, json_schema_input_type=dict[str, Any])
    ] = None
    #: Not OpenAI's, but that of chat templates with passages, and of vLLM.
    documents: list[ChatDocument] | None = Field(default=None, max_length=MAX_DOCUMENTS)
    # ... or unless the bot ignores them, or `tool_choice` is "none": they are read by `params`.
    tools: Any = None
    tool_choice: Annotated[Any, BeforeValidator(_check_choice)] = None
    functions: Any = None

    # Refused, unless they ask for what Turnmill does anyway.
    n: Annotated[Any, _Unless(1)] = None
    function_call: Annotated[Any, _Unless("none", "auto")] = None
    logit_bias: Annotated[Any, _Unless({})] = None
    modalities: Annotated[Any, _Unless(["text"], [])] = None
    audio: Annotated[Any, _Unless()] = None
    moderation: Annotated[Any, _Unless()] = None
    web_search_options: Annotated[Any, _Unless()] = None

    # The same; not OpenAI's, but sent to vLLM, SGLang, TGI and llama.cpp with every call.
    add_generation_prompt: Annotated[Any, _Unless(True)] = None
    add_special_tokens: Annotated[Any, _Unless(False)] = None
    bad_words: Annotated[Any, _Unless([])] = None
    best_of: Annotated[Any, _Unless(1)] = None
    chat_template: Annotated[Any, _Unless()] = None
    continue_final_message: Annotated[Any, _Unless(False)] = None
    early_stopping: Annotated[Any, _Unless(False)] = None
    echo: Annotated[Any, _Unless(False)] = None
    guided_choice: Annotated[Any, _Unless([])] = None
    guided_grammar: Annotated[Any, _Unless("")] = None
    guided_json: Annotated[Any, _Unless()] = None
    guided_regex: Annotated[Any, _Unless("")] = None
    ignore_eos: Annotated[Any, _Unless(False)] = None
    include_stop_str_in_output: Annotated[Any, _Unless(False)] = None
    length_penalty: Annotated[Any, _Unless(1)] = None
    logits_processors: Annotated[Any, _Unless([])] = None
    min_tokens: Annotated[Any, _Unless(0)] = None
    mirostat: Annotated[Any, _Unless(0)] = None
    priority: Annotated[Any, _Unless(0)] = None
    prompt_logprobs: Annotated[Any, _Unless(0)] = None
    skip_special_tokens: Annotated[Any, _Unless(True)] = None
    spaces_between_special_tokens: Annotated[Any, _Unless(True)] = None
    stop_token_ids: Annotated[Any, _Unless([])] = None
    structured_outputs: Annotated[Any, _Unless({})] = None
    tfs_z: Annotated[Any, _Unless(1)] = None
    top_a: Annotated[Any, _Unless(0)] = None
    truncate_prompt_tokens: Annotated[Any, _Unless()] = None
    typical_p: Annotated[Any, _Unless(1)] = None
    use_beam_search: Annotated[Any, _Unless(False)] = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def offered_tools(self) -> Literal["tools", "functions"] | None:
        """The field with tools that the model might call."""
        if self.tools and self.tool_choice != "none":
            return "tools"
        return "functions" if self.functions and self.function_call != "none" else None

    def turn_messages(self) -> tuple[Message, ...]:
        return tuple(message.message() for message in self.messages)

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count and not info.data.get("logprobs"):
            raise PydanticCustomError("needs_logprobs", "It needs 'logprobs': true")
        return count

    @property
    def demanded_tool(self) -> str | None:
        """The tool that the model must call, or `required` for any of them."""
        match self.tool_choice:
            case "required":
                return "required"
            case {"function": {"name": str(name)}}:
                return name
        return None

    def params(self, *, offers_tools: bool = True) -> GenerationParams:
        """The turn's parameters. Without `offers_tools`, the model is not told of any.

        Raises:
            InvalidInput: the tools are not as OpenAI has them.
        """
        given: dict[str, Any] = {} if self.stop is None else {"stop": tuple(self.stop)}
        if self.documents:
            given["documents"] = [document.model_dump() for document in self.documents]
        if offers_tools and self.offered_tools == "tools":
            given |= {"tools": _read_tools(self.tools), "tool_choice": self.demanded_tool}
        return GenerationParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            seed=self.seed,
            frequency_penalty=self.frequency_penalty or None,
            presence_penalty=self.presence_penalty or None,
            response_format=self.response_format,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            **given,
            template_kwargs=self.chat_template_kwargs or None,
        )


_TOOLS: TypeAdapter[list[OfferedTool]] = TypeAdapter(
    Annotated[list[OfferedTool], Field(max_length=MAX_TOOLS)]
)


def _read_tools(value: object) -> tuple[Tool, ...]:
    try:
        offered = _TOOLS.validate_python(value)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        raise _invalid([{**each, "loc": ("tools", *each["loc"])} for each in mistakes]) from None
    return tuple(Tool(**tool.function.model_dump()) for tool in offered)


def parse_chat_request(body: bytes) -> ChatCompletionRequest:
    """Read a body, which may begin with a UTF-8 byte order mark.

    Raises:
        InvalidInput: its message tells the first mistakes and `param` the first field at fault;
            neither repeats a value.
    """
    if has_more_values(body, MAX_VALUES):
        raise InvalidInput(f"The body has more than {MAX_VALUES} JSON values.")
    try:
        return ChatCompletionRequest.model_validate_json(body.removeprefix(_BOM))
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None


def _invalid(mistakes: list[ErrorDetails]) -> InvalidInput:
    sentences = [_sentence(mistake) for mistake in mistakes[:MAX_SHOWN_MISTAKES]]
    if (more := len(mistakes) - len(sentences)) > 0:
        sentences.append(f"There are {more} more mistakes.")
    return InvalidInput(" ".join(sentences), param=_param(mistakes[0]))


def _sentence(mistake: ErrorDetails) -> str:
    param = _param(mistake)
    match mistake["type"]:
        case "json_invalid":
            reason = mistake["msg"].removeprefix("Invalid JSON: ")
            return f"The body is not valid JSON: {reason}."
        case "unknown_field":
            more = f" and {mistake['ctx']['more']} more" if mistake["ctx"]["more"] else ""
            names = ", ".join(_unknown(mistake))
            return f"Unrecognized request argument supplied: {names}{more}."
        case "missing":
            return f"Missing required parameter: '{param}'."
        case "not_supported" if mistake["msg"] == "Not supported":
            return f"'{param}' is not supported with this value."
    if param is None:
        return "The body must be a JSON object."
    return f"Invalid '{param}': {mistake['msg']}."


def _param(mistake: ErrorDetails) -> str | None:
    """The field at fault, `messages[0].content`."""
    return _unknown(mistake)[0] if mistake["type"] == "unknown_field" else _path(mistake["loc"])


def _unknown(mistake: ErrorDetails) -> list[str]:
    return [_path([*mistake["loc"], name]) or "" for name in mistake["ctx"]["names"]]


def _path(location: Iterable[int | str]) -> str | None:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{_shown(part)}"
    return path.lstrip(".") or None


def _shown(name: str) -> str:
    return name[:MAX_SHOWN_NAME]


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

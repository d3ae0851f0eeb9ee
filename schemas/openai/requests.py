"""A chat completion as a client asks for it."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from turnmill.schemas.content import (
    MAX_BIASES,
    MAX_DOCUMENTS,
    MAX_TOOL_CALLS,
    Bias,
    InlinePart,
    MediaPart,
    Name,
    TextPart,
    refuse_nul,
    storable,
)
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.openai.content import ChatDocument, Content
from turnmill.schemas.openai.fields import Body, Tokens, Unless, as_integer, as_list, as_seed
from turnmill.schemas.openai.formats import AskedFormat, Choices, StructuredOutputs
from turnmill.schemas.openai.history import read_message
from turnmill.schemas.openai.tools import ChatToolCall, read_tools
from turnmill.schemas.turns import (
    MAX_MESSAGES,
    GenerationParams,
    Message,
    Role,
    Stop,
    TemplateKwargs,
    Tool,
)

#: Characters of the name of who asks.
MAX_USER = 255


def _check_choice(choice: object) -> object:
    match choice:
        case (
            None | "none" | "auto" | "required" | {"type": "function", "function": {"name": str()}}
        ):
            return choice
    raise PydanticCustomError("not_supported", "Not supported")


#: Makes parts that a turn may have of those that a call brings.
Keep = Callable[[MediaPart | InlinePart], MediaPart | TextPart]


class ChatMessage(Body):
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
    id: object = None
    name: object = None
    cache_control: object = None
    annotations: object = None
    # Of an assistant alone: `read_message` makes content and calls of them.
    refusal: object = None
    audio: object = None
    function_call: object = None
    tool_calls: list[ChatToolCall] | None = Field(default=None, max_length=MAX_TOOL_CALLS)
    tool_call_id: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, body: object) -> object:
        return read_message(body) if isinstance(body, dict) else body

    @classmethod
    def _is_open(cls, body: dict[str, object]) -> bool:
        return body.get("role") == "assistant"

    def message(self, keep: Keep | None = None) -> Message:
        """The message of a turn. `keep` stores the bytes of its parts and returns what refers to
        them; without it there may be none."""
        role = Role.SYSTEM if self.role == "developer" else Role(self.role)
        content: Any = self.content
        if keep is not None and not isinstance(content, str):
            content = tuple(each if isinstance(each, TextPart) else keep(each) for each in content)
        return Message(
            role=role,
            content=content,
            tool_calls=tuple(call.call() for call in self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
        )


class StreamOptions(Body):
    include_usage: bool = Field(default=False, description="End with a chunk that has the usage.")
    include_obfuscation: object = None
    continuous_usage_stats: object = None


class ChatCompletionRequest(Body):
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
        BeforeValidator(as_list, json_schema_input_type=str | list[str] | None),
    ] = Field(
        default=None, max_length=4, description="An empty list takes back the bot's own strings."
    )
    seed: Annotated[int | None, BeforeValidator(as_seed)] = Field(default=None, ge=0, lt=2**63)
    #: Not OpenAI's, but vLLM's and many others'.
    top_k: Annotated[int | None, BeforeValidator(as_integer)] = Field(
        default=None, ge=-1, lt=2**31, description="0 or -1: all tokens."
    )
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    chat_template_kwargs: TemplateKwargs | None = Field(
        default=None,
        description="Passed to the model's chat template, which must know each name: "
        '`{"enable_thinking": false}`.',
    )

    # Who asks, where the bot remembers its users: the newer name and the older one.
    safety_identifier: object = None
    user: object = None

    # Accepted; the reply does not depend on them.
    metadata: object = None
    store: object = None
    service_tier: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    prediction: object = None
    reasoning_effort: object = None
    verbosity: object = None

    # Refused by accept, unless a live worker's engine can do it (`schemas/capabilities.py`), ...
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Bias] | None = Field(
        default=None,
        max_length=MAX_BIASES,
        description="-100 to 100, by the id of a token in the model's own vocabulary.",
    )
    response_format: AskedFormat | None = None
    #: Not OpenAI's, but vLLM's, by its names of today and of before.
    structured_outputs: StructuredOutputs | None = None
    guided_choice: Choices | None = None
    guided_json: dict[str, object] | str | None = None
    #: Not OpenAI's, but that of chat templates with passages, and of vLLM.
    documents: list[ChatDocument] | None = Field(default=None, max_length=MAX_DOCUMENTS)
    # ... or unless the bot ignores them, or `tool_choice` is "none": they are read by `params`.
    tools: object = None
    tool_choice: Annotated[object, BeforeValidator(_check_choice)] = None
    parallel_tool_calls: bool | None = None
    functions: object = None

    # Refused, unless they ask for what Turnmill does anyway.
    n: Annotated[object, Unless(1)] = None
    function_call: Annotated[object, Unless("none", "auto")] = None
    modalities: Annotated[object, Unless(["text"], [])] = None
    audio: Annotated[object, Unless()] = None
    moderation: Annotated[object, Unless()] = None
    web_search_options: Annotated[object, Unless()] = None

    # The same; not OpenAI's, but sent to vLLM, SGLang, TGI and llama.cpp with every call.
    add_generation_prompt: Annotated[object, Unless(True)] = None
    add_special_tokens: Annotated[object, Unless(False)] = None
    bad_words: Annotated[object, Unless([])] = None
    best_of: Annotated[object, Unless(1)] = None
    chat_template: Annotated[object, Unless()] = None
    continue_final_message: Annotated[object, Unless(False)] = None
    early_stopping: Annotated[object, Unless(False)] = None
    echo: Annotated[object, Unless(False)] = None
    guided_grammar: Annotated[object, Unless("")] = None
    guided_regex: Annotated[object, Unless("")] = None
    ignore_eos: Annotated[object, Unless(False)] = None
    include_stop_str_in_output: Annotated[object, Unless(False)] = None
    length_penalty: Annotated[object, Unless(1)] = None
    logits_processors: Annotated[object, Unless([])] = None
    min_tokens: Annotated[object, Unless(0)] = None
    mirostat: Annotated[object, Unless(0)] = None
    priority: Annotated[object, Unless(0)] = None
    prompt_logprobs: Annotated[object, Unless(0)] = None
    skip_special_tokens: Annotated[object, Unless(True)] = None
    spaces_between_special_tokens: Annotated[object, Unless(True)] = None
    stop_token_ids: Annotated[object, Unless([])] = None
    tfs_z: Annotated[object, Unless(1)] = None
    top_a: Annotated[object, Unless(0)] = None
    truncate_prompt_tokens: Annotated[object, Unless()] = None
    typical_p: Annotated[object, Unless(1)] = None
    use_beam_search: Annotated[object, Unless(False)] = None

    @property
    def asked_by(self) -> str | None:
        """Who asks, in the client's words; None without a text of 1 to 255 storable characters."""
        for given in (self.safety_identifier, self.user):
            if isinstance(given, str) and 0 < len(given) <= MAX_USER and given == storable(given):
                return given
        return None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def offered_tools(self) -> Literal["tools", "functions"] | None:
        """The field with tools that the model might call."""
        if self.tools and self.tool_choice != "none":
            return "tools"
        return "functions" if self.functions and self.function_call != "none" else None

    @property
    def has_parts(self) -> bool:
        """Whether a message has parts that are not all text."""
        return any(not isinstance(message.content, str) for message in self.messages)

    def turn_messages(self, keep: Keep | None = None) -> tuple[Message, ...]:
        """The messages of the turn; see `ChatMessage.message`."""
        return tuple(message.message(keep) for message in self.messages)

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

    @property
    def wanted_format(self) -> ResponseFormat | None:
        """Raises `InvalidInput` where two fields ask for a format."""
        asked = {
            "response_format": self.response_format.read() if self.response_format else None,
            "structured_outputs": self.structured_outputs.read()
            if self.structured_outputs
            else None,
            "guided_choice": StructuredOutputs(choice=self.guided_choice).read(),
            "guided_json": StructuredOutputs(json=self.guided_json).read(),
        }
        given = {name: wish for name, wish in asked.items() if wish is not None}
        if len(given) > 1 and given.get("response_format") == ResponseFormat(type="text"):
            del given["response_format"]
        if len(given) > 1:
            names = " and ".join(f"'{name}'" for name in given)
            raise InvalidInput(f"{names} both ask for a format: send one.", param=[*given][1])
        return next(iter(given.values()), None)

    def _check_choice_of_nothing(self) -> None:
        if self.demanded_tool is not None and not self.tools:
            raise InvalidInput(
                "'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice"
            )

    def _check_demand(self, tools: Sequence[Tool]) -> None:
        names = [tool.name for tool in tools]
        if len({*names}) < len(names):
            raise InvalidInput("Two of the 'tools' have the same name.", param="tools")
        if self.demanded_tool not in (None, "required", *names):
            raise InvalidInput(
                f"'tool_choice' names '{self.demanded_tool}', which is none of the 'tools' "
                f"({', '.join(names)}).",
                param="tool_choice",
            )

    def params(self, *, offers_tools: bool = True) -> GenerationParams:
        """The turn's parameters. Without `offers_tools`, the model is not told of any.

        Raises:
            InvalidInput: the tools are not as OpenAI has them, one must be called and there is
                none, or two formats are asked for.
        """
        self._check_choice_of_nothing()
        given: dict[str, Any] = {} if self.stop is None else {"stop": tuple(self.stop)}
        if self.documents:
            given["documents"] = [document.model_dump() for document in self.documents]
        if offers_tools and self.offered_tools == "tools":
            tools = read_tools(self.tools)
            self._check_demand(tools)
            given |= {
                "tools": tools,
                "tool_choice": self.demanded_tool,
                "parallel_tool_calls": self.parallel_tool_calls,
            }
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
            logit_bias={int(id): bias for id, bias in (self.logit_bias or {}).items()} or None,
            response_format=self.wanted_format,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            **given,
            template_kwargs=self.chat_template_kwargs or None,
        )

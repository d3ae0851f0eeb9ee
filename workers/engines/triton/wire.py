"""The tensors between the engine `triton` and the model that `infra/triton` serves, for both ends.

KServe's Open Inference Protocol v2 names a tensor, its datatype and its shape
(https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol). Here each
holds one value: its shape is [1, 1], a batch of one and one element.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, StringConstraints, ValidationError

from turnmill.schemas.content import MAX_MESSAGE_CHARS
from turnmill.schemas.errors import (
    ContextOverflow,
    EngineAway,
    EngineBrokeOff,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    TurnmillError,
)
from turnmill.schemas.turns import (
    DEFAULT_PARAMS,
    MAX_MESSAGES,
    FinishReason,
    GenerationParams,
    Lane,
    Message,
)
from turnmill.workers.engines.base import Chunk, Prompt

Datatype = Literal["BYTES", "INT32"]
Value = str | int

#: What is asked: `messages` and `params` are JSON. Those left out are empty, and have defaults.
INPUTS: dict[str, Datatype] = {
    "action": "BYTES",
    "messages": "BYTES",
    "prefix": "BYTES",
    "params": "BYTES",
    "lane": "BYTES",
}
#: The parameter of a request that says whose prompt it is, `Prompt.cache_namespace`.
NAMESPACE = "turnmill_cache_namespace"
#: What is answered, in each chunk; `finish_reason` is empty in all but the last.
OUTPUTS: dict[str, Datatype] = {
    "text": "BYTES",
    "token_count": "INT32",
    "finish_reason": "BYTES",
    "prompt_tokens": "INT32",
    "cached_tokens": "INT32",
    "context_window": "INT32",
}

Action = Literal["generate", "count_tokens", "describe"]

#: Errors that keep their kind from one end to the other.
_CARRIED = {
    error.code: error for error in (ContextOverflow, InvalidInput, EngineFailure, EngineUnavailable)
}
#: What an unavailable engine adds in the place of a parameter, which an older client ignores.
_UNAVAILABLE = {"away": EngineAway, "broke_off": EngineBrokeOff}
_ERROR = re.compile(r"\[turnmill (\w+)(?: (\w+))?\] (.*)", re.DOTALL)


class Asked(BaseModel):
    """What a caller of the served model wants, validated and bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action = "generate"
    messages: Json[Annotated[tuple[Message, ...], Field(max_length=MAX_MESSAGES)]] = ()
    prefix: Annotated[str, StringConstraints(max_length=MAX_MESSAGE_CHARS)] = ""
    params: Json[GenerationParams] = DEFAULT_PARAMS
    lane: Lane = Lane.INTERACTIVE

    @property
    def prompt(self) -> Prompt:
        kwargs = self.params.template_kwargs or {}
        return Prompt(self.messages, self.prefix, self.lane, template_kwargs=kwargs)

    @property
    def complete_params(self) -> GenerationParams:
        return self.params.over(DEFAULT_PARAMS)


@dataclass(frozen=True, slots=True)
class Answered:
    """One response of the served model."""

    chunk: Chunk
    #: As `Engine.context_window`.
    context_window: int


def encode_prompt(prompt: Prompt, params: GenerationParams) -> dict[str, Value]:
    """The input tensors that ask for a reply."""
    return {
        "action": "generate",
        "messages": encode_messages(prompt.messages),
        "prefix": prompt.prefix,
        # A served model of the previous release may not know the fields that nobody set.
        "params": params.model_dump_json(exclude_none=True),
        "lane": prompt.lane.value,
    }


def encode_messages(messages: Sequence[Message]) -> str:
    # json, not pydantic: half a surrogate pair, too, travels as far as the check at the other end.
    return json.dumps([{"role": one.role.value, "content": one.text} for one in messages])


def decode_asked(values: Mapping[str, Value]) -> Asked:
    """The other end of `encode_prompt`.

    Raises:
        InvalidInput: a tensor is malformed or out of bounds; `param` is its name.
    """
    try:
        return Asked.model_validate({name: value for name, value in values.items() if value != ""})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise InvalidInput(f"{first['msg']}.", param=str(first["loc"][0])) from None


def encode_answered(answered: Answered) -> dict[str, Value]:
    """The output tensors of one response."""
    chunk = answered.chunk
    return {
        "text": chunk.text,
        "token_count": chunk.token_count,
        "finish_reason": chunk.finish_reason or "",
        "prompt_tokens": chunk.prompt_tokens,
        "cached_tokens": chunk.cached_tokens,
        "context_window": answered.context_window,
    }


def decode_answered(values: Mapping[str, Value]) -> Answered:
    """The other end of `encode_answered`. Raises `ValueError` if a tensor is missing or wrong."""
    return _Answer.model_validate(values).answered


class _Answer(BaseModel):
    text: str
    token_count: int
    finish_reason: FinishReason | Literal[""]
    prompt_tokens: int
    cached_tokens: int
    context_window: int

    @property
    def answered(self) -> Answered:
        finish_reason = self.finish_reason or None
        usage = (self.prompt_tokens, self.cached_tokens)
        return Answered(
            Chunk(self.text, self.token_count, finish_reason, *usage), self.context_window
        )


def encode_error(error: TurnmillError) -> str:
    """Build the error message that Triton returns; our client parses its beginning."""
    kind = next((name for name, of in _UNAVAILABLE.items() if type(error) is of), error.param)
    param = f" {kind}" if kind else ""
    return f"[turnmill {error.code}{param}] {error.message}"


def decode_error(text: str) -> TurnmillError | None:
    """The other end of `encode_error`; None if the sentence is Triton's own."""
    found = _ERROR.search(text)
    if found is None:
        return None
    code, param, message = found.groups()
    if code == EngineUnavailable.code and param in _UNAVAILABLE:
        return _UNAVAILABLE[param](message)
    return _CARRIED.get(code, EngineFailure)(message, param=param)


def pack(value: Value) -> bytes:
    """A tensor of one element, as it travels: text (BYTES) behind its length, numbers as INT32."""
    if isinstance(value, int):
        return struct.pack("<i", value)
    # An error of the other end says more than one of this encoding.
    data = value.encode(errors="surrogatepass")
    return struct.pack("<I", len(data)) + data


def unpack(datatype: str, data: bytes) -> Value:
    """The other end of `pack`. Raises `ValueError` if the bytes are not one such element."""
    if datatype == "INT32" and len(data) == 4:
        return int.from_bytes(data, "little", signed=True)
    if datatype != "BYTES" or len(data) < 4 or len(data) - 4 != int.from_bytes(data[:4], "little"):
        raise ValueError(f"{len(data)} bytes are not one element of {datatype}")
    return data[4:].decode()

"""What servers that speak OpenAI's chat completions know beyond the protocol, and call otherwise.

The `owned_by` of a model in `/v1/models` tells which server answers.
"""

import json
from dataclasses import dataclass, replace
from typing import Literal

from turnmill.schemas.capabilities import ALL_FORMATS
from turnmill.schemas.formats.response import ResponseFormat


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server knows beyond the protocol."""

    #: Continues a last message of the assistant (`continue_final_message`).
    continues: bool = False
    #: What says with every chunk how many tokens the reply has: its usage, if it is asked for
    #: (`continuous_usage_stats`), or llama.cpp's timings (`timings_per_token`).
    counts_by: Literal["usage", "timings"] | None = None
    #: Where messages are counted, and what the count is called in the answer.
    tokenize: str | None = None
    count: str = "count"
    #: Refuses a turn whose `max_tokens` do not fit; others end its reply where the window ends.
    is_strict: bool = False
    #: Where a prompt is shown as the model reads it.
    render: str | None = None
    #: Has defaults of its own where a sampling parameter is left out, often the model's
    #: (generation_config.json), and takes every neutral value.
    has_own_defaults: bool = False
    #: How prompts of one namespace are kept from finding what another one's left in its cache: by a
    #: salt, or by computing the whole prompt again.
    isolates_by: Literal["cache_salt", "cache_prompt"] | None = None
    #: Takes `chat_template_kwargs`. A name that the template does not know changes nothing there.
    takes_template_kwargs: bool = False
    #: What a reply may be made to be, as `Capabilities.formats`.
    formats: frozenset[str] = frozenset({"text", "json_object", "json_schema"})
    #: What it calls the repetition penalty.
    penalty: str = "repetition_penalty"


#: In place of 0 where a server wants temperatures above it, as older releases of TGI do: all but
#: greedy. https://github.com/huggingface/text-generation-inference/issues/1236
ALMOST_ZERO = 0.01
_ABOVE_ZERO = ("positive", "greater than 0", "> 0", "(0,")

PLAIN = Dialect()
DIALECTS = {
    "vllm": Dialect(
        continues=True,
        counts_by="usage",
        tokenize="/tokenize",
        is_strict=True,
        has_own_defaults=True,
        takes_template_kwargs=True,
        isolates_by="cache_salt",  # https://docs.vllm.ai/en/latest/design/prefix_caching/
        formats=ALL_FORMATS,
    ),
    "sglang": Dialect(
        continues=True,
        counts_by="usage",
        has_own_defaults=True,
        takes_template_kwargs=True,
        isolates_by="cache_salt",  # https://github.com/sgl-project/sglang/pull/23300
    ),
    "llamacpp": Dialect(
        continues=True,
        counts_by="timings",
        tokenize="/v1/chat/completions/input_tokens",
        count="input_tokens",
        render="/apply-template",
        has_own_defaults=True,
        takes_template_kwargs=True,
        isolates_by="cache_prompt",
        penalty="repeat_penalty",
    ),
    # LM Studio
    "organization_owner": Dialect(has_own_defaults=True, penalty="repeat_penalty"),
}


@dataclass(frozen=True, slots=True)
class Habits:
    """Names that a server was found to want or to refuse."""

    takes_stream_options: bool = True
    #: Newer models of OpenAI and Azure refuse the old name.
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    takes_zero_temperature: bool = True

    def after(self, refusal: str) -> "Habits":
        """The habits that a refusal teaches; these, if it names none of them."""
        if "stream_options" in refusal:
            return replace(self, takes_stream_options=False)
        if "max_completion_tokens" in refusal:
            return replace(self, limit="max_completion_tokens")
        if "temperature" in refusal and any(words in refusal for words in _ABOVE_ZERO):
            return replace(self, takes_zero_temperature=False)
        return self


def format_fields(format: ResponseFormat) -> dict[str, object]:
    """The fields of a body that ask for a format; a choice is asked for as vLLM has it."""
    if format.type == "choice":
        return {"structured_outputs": {"choice": list(format.choices)}}
    asked: dict[str, object] = {"type": format.type}
    if format.type == "json_schema":
        asked["json_schema"] = {
            "name": format.name or "reply",
            "schema": json.loads(format.schema_text or "{}"),
            "strict": format.strict,
        }
    return {"response_format": asked}

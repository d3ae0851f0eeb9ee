"""A format as vLLM's structured outputs have it.

https://docs.vllm.ai/en/latest/features/structured_outputs.html
"""

from collections.abc import Mapping

from turnmill.schemas.formats.response import ResponseFormat
from turnmill.workers.engines.local.guidance import NO_TOKENS, calls_grammar, guidance_schema
from turnmill.workers.engines.text.call_form import CallForm

#: The arguments of `StructuredOutputsConfig`. vLLM 0.32 reads white space from here only, and takes
#: every turn to the backend of the first one; XGrammar 0.2.8, its own choice, ignores `multipleOf`
#: and lengths beside a pattern, and writes spaces after commas.
STRUCTURED_OUTPUTS: dict[str, object] = {"backend": "guidance", "disable_any_whitespace": True}


def structured_fields(
    held_to: ResponseFormat | CallForm, special: Mapping[str, int] = NO_TOKENS
) -> dict[str, object]:
    """The arguments of `StructuredOutputsParams` for a checked format, or for calls.

    `special`: as `special_tokens`.
    """
    if isinstance(held_to, CallForm):
        return {"grammar": calls_grammar(held_to, special)}
    if held_to.type == "choice":
        return {"choice": list(held_to.choices)}
    return {"json": guidance_schema(held_to)}

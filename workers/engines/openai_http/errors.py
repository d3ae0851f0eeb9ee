"""Errors of servers that speak OpenAI's chat completions, as ours.

Their messages carry the server's own words. These are for the log: no tenant reads the message of
an `EngineFailure` or an `EngineUnavailable`.
"""

import json
from collections.abc import Iterable

import httpx

from turnmill.schemas.errors import (
    ContextOverflow,
    EngineBrokeOff,
    EngineBusy,
    EngineFailure,
    EngineRefused,
    EngineUnavailable,
    InvalidInput,
    TurnmillError,
)

#: Statuses of a server that has too much to do, for every turn or for one. 529 is Anthropic's and
#: OpenRouter's 503.
BUSY = frozenset({409, 425, 429, 503, 529})
#: Those of a gateway that got no answer, to any turn or to one. 524 is Cloudflare's 504.
UNANSWERED = frozenset({408, 502, 504, 524})
#: What may be set wrong, where a status concerns every turn.
REMEDIES = {
    401: "set TURNMILL_ENGINE__ENDPOINT_KEY",
    402: "top up the account of TURNMILL_ENGINE__ENDPOINT_KEY",
    403: "set TURNMILL_ENGINE__ENDPOINT_KEY",
    404: "check TURNMILL_ENGINE__ENDPOINTS and TURNMILL_ENGINE__REMOTE_MODEL",
}

#: What a server calls a prompt that its filter withholds: Azure (and, within, the second), LiteLLM
#: and OpenRouter, Alibaba's Model Studio, Volcengine's Ark.
#: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter
#: https://docs.litellm.ai/docs/exception_mapping
#: https://openrouter.ai/docs/api/reference/errors-and-debugging
FILTERED = frozenset(
    {
        "content_filter",
        "ResponsibleAIPolicyViolation",
        "content_policy_violation",
        "data_inspection_failed",
        "InputTextSensitiveContentDetected",
        "SensitiveContentDetected",
    }
)
#: In lower case, what those say whose code for it means other things too: xAI with 403, DeepSeek
#: with 400.
FILTER_WORDS = ("content violates usage guidelines", "content exists risk")
#: Fields of OpenRouter's `metadata` when a prompt is flagged (403), or blocked by a guardrail.
FLAGS = frozenset({"flagged_input", "reasons", "patterns"})
#: Types of an error within a stream that blames the turn (OpenAI's, vLLM's).
REFUSALS = frozenset({"invalid_request_error", "BadRequestError"})

#: In lower case, what templates' refusals have in common (vLLM with 400, llama.cpp with 500).
TEMPLATE_WORDS = ("roles must alternate", "role not supported", "jinja exception")

#: Characters of a server's text that are kept.
MAX_SAID = 300
#: So many characters in a row that stand in the prompt too are the prompt's.
REPEATED = 24


class NotServed(EngineRefused):
    """The server has nothing at that path, or no such model."""


class Filtered(EngineFailure):
    """The server's filter withholds the reply to this prompt."""


def translated(status: int, text: str) -> TurnmillError:
    """What a status other than 200 means, of an answer that begins with `text`."""
    error = _error_of(text)
    if any(word in _said(error).lower() for word in TEMPLATE_WORDS):
        return InvalidInput("The model's chat template refuses the messages.", param="messages")
    if _is_filtered(error):
        return _refused(error)
    said = f"it answers {status} ({_said(error)})"
    if status in REMEDIES:
        kind = NotServed if status == httpx.codes.NOT_FOUND else EngineRefused
        return kind(f"{said}: {REMEDIES[status]}")
    if status in BUSY:
        return EngineBusy(said)
    if status in UNANSWERED:
        return EngineRefused(said)
    if not 400 <= status < 500:
        return EngineUnavailable(said)
    return _refused(error)


def in_stream(error: object) -> TurnmillError:
    """What an `error` within a stream of status 200 means."""
    code = error.get("code") if isinstance(error, dict) else None
    kind = error.get("type") if isinstance(error, dict) else None
    if _is_filtered(error) or kind in REFUSALS:
        return _refused(error)
    if str(code).isdecimal():
        meant = translated(int(str(code)), json.dumps({"error": error}))
        return meant if type(meant) is not EngineUnavailable else EngineBrokeOff(meant.message)
    return EngineBrokeOff(f"it says: {_said(error)}")


def without_prompt(error: TurnmillError, texts: Iterable[str]) -> TurnmillError:
    """The error without a server's text that repeats the prompt: no log may hold one."""
    said = error.message
    pieces = {said[at : at + REPEATED] for at in range(len(said) - REPEATED + 1)}
    if any(piece in text for text in texts for piece in pieces):
        hidden = type(error)("The server's answer repeats the prompt and is left out.")
        if isinstance(error, EngineUnavailable) and isinstance(hidden, EngineUnavailable):
            hidden.retry_after_s = error.retry_after_s
        return hidden
    return error


def _refused(error: object) -> TurnmillError:
    said = _said(error)
    lowered = said.lower()
    if _is_filtered(error):
        return Filtered(f"The server filters the prompt: {said}")
    if "context" in lowered and any(word in lowered for word in ("length", "size", "window")):
        return ContextOverflow(
            "The prompt is too long for the model behind this server.", param="messages"
        )
    return EngineFailure(f"The server refuses the turn: {said}")


def _error_of(text: str) -> object:
    """The error in a body, in whichever of the usual forms; the text, if it has none."""
    try:
        body = json.loads(text)
        return body.get("error", body)
    except (ValueError, AttributeError):
        return text


def _said(error: object) -> str:
    if isinstance(error, dict):
        error = error.get("message", error.get("detail", json.dumps(error)))
    return str(error)[:MAX_SAID]


def _is_filtered(error: object) -> bool:
    if any(words in _said(error).lower() for words in FILTER_WORDS):
        return True
    if not isinstance(error, dict):
        return False
    codes = [error.get("code"), error.get("type")]
    if isinstance(inner := error.get("innererror"), dict):
        codes.append(inner.get("code"))
    if isinstance(metadata := error.get("metadata"), dict):
        codes.append(metadata.get("error_type"))
        if FLAGS & metadata.keys():
            return True
    return any(code in FILTERED for code in codes if isinstance(code, str))

"""Errors of servers that speak OpenAI's chat completions, as ours.

Their messages carry the server's own words. These are for the log: no tenant reads the message of
an `EngineFailure` or an `EngineUnavailable`.
"""

import json
from collections.abc import Iterable

import httpx

from turnmill.schemas.errors import (
    ContextOverflow,
    EngineAway,
    EngineBrokeOff,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    TurnmillError,
)

#: Statuses that say something about the server and nothing about the turn.
BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
REMEDIES = {
    401: "set TURNMILL_ENGINE__ENDPOINT_KEY",
    403: "set TURNMILL_ENGINE__ENDPOINT_KEY",
    404: "check TURNMILL_ENGINE__ENDPOINTS and TURNMILL_ENGINE__REMOTE_MODEL",
}

#: What a server calls a prompt that its filter withholds: Azure (and, within, the second), LiteLLM,
#: Alibaba's Model Studio.
#: https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter
#: https://docs.litellm.ai/docs/exception_mapping
FILTERED = frozenset(
    {
        "content_filter",
        "ResponsibleAIPolicyViolation",
        "content_policy_violation",
        "data_inspection_failed",
    }
)
#: Types of an error within a stream that blames the turn (OpenAI's, vLLM's).
REFUSALS = frozenset({"invalid_request_error", "BadRequestError"})

#: In lower case, what templates' refusals have in common (vLLM with 400, llama.cpp with 500).
TEMPLATE_WORDS = ("roles must alternate", "role not supported", "jinja exception")

#: Characters of a server's text that are kept.
MAX_SAID = 300
#: So many characters in a row that stand in the prompt too are the prompt's.
REPEATED = 24


class NotServed(EngineAway):
    """The server has nothing at that path, or no such model."""


class Filtered(EngineFailure):
    """The server's filter withholds the reply to this prompt."""


def translated(status: int, text: str) -> TurnmillError:
    """What a status other than 200 means, of an answer that begins with `text`."""
    error = _error_of(text)
    if any(word in _said(error).lower() for word in TEMPLATE_WORDS):
        return InvalidInput("The model's chat template refuses the messages.", param="messages")
    if status in REMEDIES and not _is_filtered(error):
        kind = NotServed if status == httpx.codes.NOT_FOUND else EngineAway
        return kind(f"it answers {status} ({_said(error)}): {REMEDIES[status]}")
    if status in BUSY:
        return EngineAway(f"it answers {status} ({_said(error)})")
    if not 400 <= status < 500:
        return EngineUnavailable(f"it answers {status} ({_said(error)})")
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
        return type(error)("The server's answer repeats the prompt and is left out.")
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
    if not isinstance(error, dict):
        return False
    inner = error.get("innererror")
    codes = [error.get("code"), error.get("type")]
    codes += [inner.get("code")] if isinstance(inner, dict) else []
    return any(code in FILTERED for code in codes if isinstance(code, str))

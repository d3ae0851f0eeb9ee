"""The fields of a transcription's form: each is honoured, or refused by its name."""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from turnmill.schemas.content import MAX_NAME_CHARS
from turnmill.schemas.errors import InvalidInput, UnknownBot

Format = Literal["json", "text", "verbose_json"]

#: What OpenAI calls the model; here it stands for the one that the workers have.
WHISPER = "whisper-1"
#: Whisper reads the last 224 tokens of a prompt.
MAX_PROMPT_CHARS = 2_000
#: ISO 639-1 and 639-3. Whether the transcriber knows the language is the worker's to say.
LANGUAGE = "[a-z]{2,3}"

#: Values that change nothing, by the field.
_HARMLESS = {
    "stream": ("false",),
    "temperature": ("0", "0.0"),
    "timestamp_granularities[]": ("segment",),
    "chunking_strategy": ("auto",),
}
_READ = ("model", "language", "prompt", "response_format")

#: OpenAPI's description of the form.
FORM = {
    "type": "object",
    "required": ["file", "model"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string", "enum": [WHISPER]},
        "language": {"type": "string", "pattern": f"^{LANGUAGE}$"},
        "prompt": {"type": "string", "maxLength": MAX_PROMPT_CHARS},
        "response_format": {"type": "string", "enum": ["json", "text", "verbose_json"]},
    },
}


class Asked(NamedTuple):
    """What a call asks of its sound."""

    format: Format
    language: str | None
    prompt: str | None


def read_fields(fields: Iterable[tuple[str, str]], models: Iterable[str]) -> Asked:
    """Read the fields beside the file. `models`: the names that a call may give.

    Raises:
        InvalidInput: a field is missing or not supported.
        UnknownBot: the model is another one.
    """
    given: dict[str, str] = {}
    for name, value in fields:
        shown = name[:MAX_NAME_CHARS]
        if name not in (*_READ, *_HARMLESS) or value not in _HARMLESS.get(name, (value,)):
            raise InvalidInput(
                f"'{shown}' is not supported with this value. Leave it out.", param=shown
            )
        given[name] = value
    _check_model(given.get("model"), models)
    language, prompt = given.get("language") or None, given.get("prompt") or None
    if language and not re.fullmatch(LANGUAGE, language):
        raise InvalidInput(
            "'language' must be an ISO 639 code of two or three lowercase letters, as 'en' or "
            "'yue'. Leave it out to have the language detected.",
            param="language",
        )
    if prompt and (len(prompt) > MAX_PROMPT_CHARS or "\0" in prompt):
        raise InvalidInput(
            f"'prompt' takes {MAX_PROMPT_CHARS} characters, none of them NUL.", param="prompt"
        )
    return Asked(_format(given.get("response_format", "json")), language, prompt)


def _check_model(given: str | None, models: Iterable[str]) -> None:
    if given is None:
        raise InvalidInput("'model' is missing.", param="model")
    if given not in models:
        known = " or ".join(f"'{each}'" for each in dict.fromkeys(models))
        raise UnknownBot(
            f"Nothing transcribes as '{given[:MAX_NAME_CHARS]}'. Ask for {known}.", param="model"
        )


def _format(given: str) -> Format:
    match given:
        case "json" | "text" | "verbose_json":
            return given
    raise InvalidInput(
        "'response_format' is not supported with this value. Send json, text or verbose_json.",
        param="response_format",
    )

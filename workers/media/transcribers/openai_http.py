"""A server that speaks OpenAI's `/v1/audio/transcriptions`: vLLM, speaches, whisper.cpp and others.

https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

import math
from threading import Event
from typing import Any

from turnmill.schemas.errors import (
    EngineUnavailable,
    InvalidInput,
    SettingsError,
    TurnmillError,
)
from turnmill.schemas.files.sniffing import sniff
from turnmill.schemas.settings import MediaSettings
from turnmill.workers.media.base import (
    Hints,
    Segment,
    TranscriberFailed,
    TranscriberRefuses,
    Transcript,
)

_PATH = "/v1/audio/transcriptions"
#: Servers take the format from the name.
_SUFFIXES = {
    "audio/wav": "wav",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/webm": "webm",
    "audio/mp4": "m4a",
    "audio/amr": "amr",
}
#: Of a server that does not say how sure it is.
_UNKNOWN_CONFIDENCE = 1.0
_TIMEOUT_S = 120.0

#: Statuses that blame the sound.
_REFUSED = frozenset({400, 413, 415, 422})
#: Statuses that say something about the server and nothing about the sound.
_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
_REMEDIES = {
    401: "set TURNMILL_MEDIA__TRANSCRIBER_KEY",
    403: "set TURNMILL_MEDIA__TRANSCRIBER_KEY",
    404: "check TURNMILL_MEDIA__TRANSCRIBER_URL and TURNMILL_MEDIA__TRANSCRIBER_MODEL",
    405: "check TURNMILL_MEDIA__TRANSCRIBER_URL",
}


class ServerTranscriber:
    """One server; many sounds at once."""

    def __init__(self, settings: MediaSettings) -> None:
        """Raises `SettingsError`."""
        try:
            import httpx

            from turnmill.schemas.process.clients import http_client
        except ImportError:
            raise SettingsError(
                "The transcriber 'openai_http' needs httpx: pip install 'turnmill[remote]'"
            ) from None
        if settings.transcriber_url is None:
            raise SettingsError(
                "The transcriber 'openai_http' needs TURNMILL_MEDIA__TRANSCRIBER_URL."
            )
        key = settings.transcriber_key
        self._model = settings.transcriber_model
        self._errors = httpx.HTTPError
        self._unreached = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        self._http = http_client(
            settings.transcriber_url.get_secret_value().rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=_TIMEOUT_S,
        )

    def transcribe(self, sound: bytes, hints: Hints, abort: Event) -> Transcript:
        """Transcribe a sound; see `Transcriber`. A call that was sent is not broken off."""
        mime = sniff(sound[:64])
        fields = {"model": self._model, "response_format": "verbose_json"}
        fields |= {name: value for name, value in hints._asdict().items() if value}
        file = (f"sound.{_SUFFIXES.get(mime, 'wav')}", sound, mime)
        try:
            answer = self._http.post(_PATH, data=fields, files={"file": file})
        except self._errors as error:
            # A server that took the sound and said nothing may have died of it.
            kind = EngineUnavailable if isinstance(error, self._unreached) else TranscriberFailed
            raise kind(f"The transcriber: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise _translated(answer.status_code, hints)
        try:
            return _read(answer.json())
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            raise TranscriberFailed("The answer of the transcriber cannot be read.") from None


def _translated(status: int, hints: Hints) -> TurnmillError:
    """What a status other than 200 means."""
    if status in _REFUSED:
        refused = f"it, or the language '{hints.language}'" if hints.language else "it"
        return InvalidInput(
            f"The sound cannot be transcribed: the transcriber's server refuses {refused}.",
            param="messages",
        )
    if status in _REMEDIES:
        return TranscriberRefuses(f"The transcriber answers {status}: {_REMEDIES[status]}.")
    kind = EngineUnavailable if status in _BUSY else TranscriberFailed
    return kind(f"The transcriber answers {status}.")


def _read(body: dict[str, Any]) -> Transcript:
    """Confidence is the mean probability of a token, weighted by the segments' length."""
    text = str(body["text"]).strip()
    segments = tuple(Segment.model_validate(each) for each in body.get("segments") or ())
    rated = [
        (max(each.end - each.start, 0.01), math.exp(each.avg_logprob))
        for each in segments
        if each.avg_logprob is not None
    ]
    confidence = _UNKNOWN_CONFIDENCE
    if rated:
        confidence = sum(length * p for length, p in rated) / sum(length for length, _ in rated)
    return Transcript(
        text=text,
        confidence=min(max(confidence, 0.0), 1.0) if text else 0.0,
        language=str(body.get("language") or ""),
        duration_s=body.get("duration"),
        segments=segments,
    )

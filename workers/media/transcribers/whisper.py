"""Whisper on this machine's CPU, by faster-whisper (extra `voice`). Asks no network for anything.

https://github.com/SYSTRAN/faster-whisper
"""

import json
import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.settings import MediaSettings
from turnmill.workers.media.base import Hints, Segment, Transcript, taken, unless_aborted
from turnmill.workers.media.packaged import packaged_whisper
from turnmill.workers.media.sound import SAMPLE_RATE, decode

if TYPE_CHECKING:
    from faster_whisper.transcribe import Segment as Heard

#: Segments that are this likely to be silence say nothing, whatever was written for them.
_SILENCE = 0.6

#: Tokens of a vocabulary from which CTranslate2 takes a model for one of many languages.
_MULTILINGUAL_TOKENS = 51_865


class WhisperTranscriber:
    """A model of faster-whisper; one sound at a time."""

    def __init__(self, settings: MediaSettings, models_dir: Path) -> None:
        """Raises `SettingsError`."""
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise SettingsError(
                "The transcriber 'whisper' needs faster-whisper: pip install 'turnmill[voice]'"
            ) from None
        folder = settings.whisper_model or packaged_whisper(models_dir)
        if folder is None or not Path(folder, "model.bin").is_file():
            raise SettingsError(
                "The transcriber 'whisper' has no model: set TURNMILL_MEDIA__WHISPER_MODEL to the "
                "folder of a faster-whisper model, or install a packaged one (docs/media.md)."
            )
        self._languages = languages_of(Path(folder))
        try:
            self._refuse_unknown(settings.language)
        except InvalidInput as error:
            raise SettingsError(f"TURNMILL_MEDIA__LANGUAGE: {error.message}") from None
        self._max_s = settings.max_audio_s
        self._lock = Lock()
        self._load = partial(
            WhisperModel,
            str(folder),
            device="cpu",
            compute_type="int8",
            cpu_threads=settings.whisper_threads,
            local_files_only=True,
        )
        #: 150 MB, and seconds to load: only where somebody speaks.
        self._model: WhisperModel | None = None

    def transcribe(self, sound: bytes, hints: Hints, abort: Event) -> Transcript:
        """Transcribe a sound; see `Transcriber`."""
        import numpy as np

        self._refuse_unknown(hints.language)
        samples = np.frombuffer(decode(sound, self._max_s), dtype=np.int16).astype(np.float32)
        with taken(self._lock, abort):
            self._model = self._model or self._load()
            # Each segment is computed when it is asked for.
            segments, info = self._model.transcribe(
                samples / 32768.0,
                language=hints.language,
                initial_prompt=hints.prompt,
                beam_size=5,
                condition_on_previous_text=False,
            )
            found = list(unless_aborted(segments, abort))
        return _joined(found, info.language, len(samples) / SAMPLE_RATE)

    def _refuse_unknown(self, language: str | None) -> None:
        """Raises `InvalidInput`. A model without languages in its vocabulary takes any."""
        if language and self._languages and language not in self._languages:
            raise InvalidInput(
                f"The speech model does not know the language '{language}'. Leave it out to have "
                f"it detected, or give one of: {', '.join(sorted(self._languages))}.",
                param="language",
            )


def languages_of(folder: Path) -> frozenset[str]:
    """The languages of a model, by its vocabulary: the model itself is not loaded for that."""
    for name in ("vocabulary.json", "vocabulary.txt"):
        try:
            text = (folder / name).read_text(encoding="utf-8")
            # A line is one token, and the last one may end as the others do. `splitlines` would
            # split at tokens such as U+2028 too.
            is_json = name.endswith("json")
            tokens = json.loads(text) if is_json else text.removesuffix("\n").split("\n")
        except (OSError, ValueError):
            continue
        found = frozenset(re.findall(r"<\|([a-z]{2,3})\|>", text))
        return found if len(tokens) >= _MULTILINGUAL_TOKENS else frozenset({"en"})
    return frozenset()


def _joined(segments: "Iterable[Heard]", language: str, duration_s: float) -> Transcript:
    """Confidence is the mean probability of a token, weighted by the segments' length."""
    said = [each for each in segments if each.no_speech_prob < _SILENCE and each.text.strip()]
    seconds = sum(each.end - each.start for each in said)
    if not said or seconds <= 0:
        return Transcript(text="", confidence=0.0, language=language, duration_s=duration_s)
    mean = sum(math.exp(each.avg_logprob) * (each.end - each.start) for each in said) / seconds
    return Transcript(
        text=" ".join(each.text.strip() for each in said),
        confidence=min(mean, 1.0),
        language=language,
        duration_s=duration_s,
        segments=tuple(Segment.model_validate(vars(each)) for each in said),
    )

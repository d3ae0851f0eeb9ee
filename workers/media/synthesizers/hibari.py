"""hibari (extra `speech`): English, with its voice in its wheel, on the CPU.

https://github.com/MMWilliams/hibari, Apache-2.0. A minute of speech takes a second of one core.
"""

import time
import unicodedata
from threading import Lock
from typing import TYPE_CHECKING

from turnmill.schemas.errors import SettingsError
from turnmill.workers.media.sound import encode
from turnmill.workers.turn.abort import Interrupted

if TYPE_CHECKING:
    pass

_RATE = 24_000
#: Of a text's letters, at least so many are Latin.
_LATIN_SHARE = 0.9


class HibariSynthesizer:
    """One text at a time."""

    def __init__(self) -> None:
        """Raises `SettingsError`."""
        try:
            from hibari import Hibari
        except ImportError:
            raise SettingsError(
                "The synthesizer 'hibari' is not installed: pip install 'turnmill[speech]'"
            ) from None
        self._lock = Lock()
        self._load = Hibari
        #: A second to load: only where somebody is spoken to.
        self._voice: Hibari | None = None

    def speak(self, text: str, until: float) -> bytes | None:
        """Speak a text; see `Synthesizer`. The same text is the same sound."""
        if not _is_latin(text):
            return None
        import numpy as np

        with self._lock:
            self._voice = self._voice or self._load()
            sentences = []
            for sentence in self._voice.stream(text, seed=0):
                if time.monotonic() > until:
                    raise Interrupted
                sentences.append(sentence)
        if not sentences:
            return None
        samples = np.clip(np.concatenate(sentences), -1, 1)
        return encode((samples * 32767).astype("<i2").tobytes(), _RATE)


def _is_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
    return bool(letters) and latin >= _LATIN_SHARE * len(letters)

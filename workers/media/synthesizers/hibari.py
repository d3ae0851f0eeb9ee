"""hibari (extra `speech`): English, with its voice in its wheel, on the CPU.

https://github.com/MMWilliams/hibari, Apache-2.0. A minute of speech takes a second of one core.
"""

import unicodedata
from threading import Lock
from typing import Any

from turnmill.schemas.errors import SettingsError
from turnmill.workers.media.sound import encode

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
        self._voice: Any = None

    def speak(self, text: str) -> bytes | None:
        """Speak a text; see `Synthesizer`. The same text is the same sound."""
        if not _is_latin(text):
            return None
        import numpy as np

        with self._lock:
            self._voice = self._voice or self._load()
            samples = self._voice(text, seed=0)
        return encode((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), _RATE)


def _is_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith("LATIN") for char in letters)
    return bool(letters) and latin >= _LATIN_SHARE * len(letters)

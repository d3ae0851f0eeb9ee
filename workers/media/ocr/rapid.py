"""RapidOCR (extra `ocr`): Chinese and English, with its models in its wheel, on the CPU.

https://github.com/RapidAI/RapidOCR
"""

import io
from functools import partial
from threading import Event, Lock
from typing import Any

from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.workers.media.base import taken

#: Lines that are less certain are left out.
_MIN_SCORE = 0.5


class RapidReader:
    """One image at a time."""

    def __init__(self) -> None:
        """Raises `SettingsError`."""
        try:
            from rapidocr import RapidOCR
        except ImportError:
            raise SettingsError(
                "The reader 'rapidocr' is not installed: pip install 'turnmill[ocr]'"
            ) from None
        self._lock = Lock()
        self._load = partial(RapidOCR, params={"Global.log_level": "error"})
        #: Seconds to load: only where somebody sends an image.
        self._engine: Any = None

    def read(self, image: bytes, abort: Event) -> str:
        """Read an image; see `ImageReader`."""
        import numpy as np
        from PIL import Image

        try:
            pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[:, :, ::-1]
        except OSError:
            raise InvalidInput("The image cannot be decoded.", param="messages") from None
        with taken(self._lock, abort):
            self._engine = self._engine or self._load()
            found = self._engine(pixels)
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return "\n".join(text for text, score in lines if score >= _MIN_SCORE and text.strip())

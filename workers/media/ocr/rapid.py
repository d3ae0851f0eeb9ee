"""RapidOCR (extra `ocr`): Chinese and English, with its models in its wheel, on the CPU.

https://github.com/RapidAI/RapidOCR
"""

import io
from collections.abc import Callable
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING

from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.workers.media.base import taken
from turnmill.workers.turn.abort import Interrupted

if TYPE_CHECKING:
    from rapidocr import RapidOCR

#: What RapidOCR does with an image, each for seconds: an abort is heard before each.
_STEPS = ("detect_and_crop", "cls_and_rotate", "recognize_txt")
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
        self._engine: RapidOCR | None = None
        #: Of who reads now.
        self._abort = Event()

    def _loaded(self) -> "RapidOCR":
        engine = self._load()
        for name in _STEPS:
            setattr(engine, name, partial(self._step, getattr(engine, name)))
        return engine

    def _step(self, step: Callable[..., object], *given: object) -> object:
        if self._abort.is_set():
            raise Interrupted
        return step(*given)

    def read(self, image: bytes, abort: Event) -> str:
        """Read an image; see `ImageReader`."""
        import numpy as np
        from PIL import Image

        try:
            pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[:, :, ::-1]
        except OSError:
            raise InvalidInput("The image cannot be decoded.", param="messages") from None
        with taken(self._lock, abort):
            self._engine = self._engine or self._loaded()
            self._abort = abort
            found = self._engine(pixels)
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return "\n".join(text for text, score in lines if score >= _MIN_SCORE and text.strip())

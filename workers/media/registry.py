"""Which reader the settings name; each is imported when it is made."""

from importlib.util import find_spec
from pathlib import Path

import structlog

from turnmill.schemas.settings import MediaSettings
from turnmill.workers.media.base import ImageReader, Synthesizer, Transcriber
from turnmill.workers.media.packaged import packaged_whisper

log = structlog.get_logger()


def create_transcriber(settings: MediaSettings, models_dir: Path) -> Transcriber | None:
    """Make the transcriber that the settings name, or find one; None: there is none.

    Raises:
        SettingsError: the one that is named cannot be had.
    """
    name = settings.transcriber
    if name == "auto" and find_spec("faster_whisper"):
        has_model = settings.whisper_model or packaged_whisper(models_dir)
        name = "whisper" if has_model else "off"
    if name == "whisper":
        from turnmill.workers.media.transcribers.whisper import WhisperTranscriber

        return WhisperTranscriber(settings, models_dir)
    if name == "openai_http":
        from turnmill.workers.media.transcribers.openai_http import ServerTranscriber

        return ServerTranscriber(settings)
    return None


def create_image_reader(settings: MediaSettings) -> ImageReader | None:
    """Make the reader of images that the settings name, or find one; None: there is none.

    Raises:
        SettingsError: the one that is named cannot be had.
    """
    if settings.ocr == "off" or (settings.ocr == "auto" and not find_spec("rapidocr")):
        return None
    from turnmill.workers.media.ocr.rapid import RapidReader

    return RapidReader()


def create_synthesizer(settings: MediaSettings) -> Synthesizer | None:
    """Make the synthesizer that the settings name, or find one; None: there is none.

    Raises:
        SettingsError: the one that is named cannot be had.
    """
    name = settings.synthesizer
    if name == "off" or (name == "auto" and not (find_spec("hibari") and find_spec("av"))):
        return None
    from turnmill.workers.media.synthesizers.hibari import HibariSynthesizer

    return HibariSynthesizer()

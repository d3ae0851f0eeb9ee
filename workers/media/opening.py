"""Open what a worker reads images and sound with."""

from turnmill.schemas.files.opening import open_files
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings
from turnmill.workers.media.media import Media
from turnmill.workers.media.registry import create_image_reader, create_transcriber


def open_media(database: Database, settings: Settings) -> Media:
    """Find the readers that the settings name. Raises `SettingsError` for one that is not there."""
    return Media(
        database,
        open_files(database, settings),
        settings.media,
        create_transcriber(settings.media, settings.models_dir),
        create_image_reader(settings.media),
    )

"""Open the storage that the settings name."""

from turnmill.schemas.files.files import Files
from turnmill.schemas.files.local import LocalStorage
from turnmill.schemas.files.parts import PartKeeper
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings


def open_storage(settings: Settings) -> Storage:
    """Return the storage of files. Nothing is made before something is written."""
    return LocalStorage(settings.files_dir)


def open_files(database: Database, settings: Settings) -> Files:
    """Return the files of a database and of the storage that the settings name."""
    return Files(database, open_storage(settings), settings.files.max_tenant_bytes)


def open_parts(database: Database, settings: Settings) -> PartKeeper:
    """Return what makes parts of messages of bytes."""
    return PartKeeper(open_files(database, settings), open_storage(settings), settings)

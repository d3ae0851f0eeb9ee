"""Storages by name, and what is opened with them. A new storage is one file and one line here, and
the contract suite runs it.
"""

from importlib import import_module

from turnmill.schemas.files.files import Files
from turnmill.schemas.files.parts import PartKeeper
from turnmill.schemas.files.storage import Storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings

#: `TURNMILL_FILES__STORAGE` → "module:Class", imported only when chosen.
STORAGES = {
    "local": "turnmill.schemas.files.local:LocalStorage",
    "s3": "turnmill.schemas.files.s3.storage:S3Storage",
}


def open_storage(settings: Settings) -> Storage:
    """Return the storage of files. Nothing is made before something is written.

    Raises:
        SettingsError: its library or a setting is missing.
    """
    module, _, attribute = STORAGES[settings.files.storage].partition(":")
    storage: Storage = getattr(import_module(module), attribute).of(settings)
    return storage


def open_files(database: Database, settings: Settings) -> Files:
    """Return the files of a database and of the storage that the settings name."""
    return Files(database, open_storage(settings), settings.files.max_tenant_bytes)


def open_parts(database: Database, settings: Settings) -> PartKeeper:
    """Return what makes parts of messages of bytes."""
    return PartKeeper(open_files(database, settings), open_storage(settings), settings)

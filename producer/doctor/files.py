"""The storage of files: reachable, ours, and deleting what it is told to delete."""

from collections.abc import Iterator

from turnmill.producer.doctor.database import Target
from turnmill.producer.doctor.findings import Check, Finding, broken, ok, warning
from turnmill.schemas.errors import SettingsError, StorageUnavailable
from turnmill.schemas.files.opening import open_storage
from turnmill.schemas.store.fleet.deployment import read_deployment


def _storage(target: Target) -> Iterator[Finding]:
    try:
        storage = open_storage(target.settings)
        doubts = storage.check()
        if target.has_tables:
            storage.refuse_other(read_deployment(target.database).id)
    except SettingsError as error:
        yield broken(error.message)
    except StorageUnavailable as error:
        yield broken(error.message, error.remedy)
    else:
        yield from (warning(doubt.detail, doubt.remedy) for doubt in doubts)
        if not doubts:
            yield ok(storage.place)


CHECKS: dict[str, Check[Target]] = {"files": _storage}

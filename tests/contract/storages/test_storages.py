"""What every storage of files must do: a folder, and buckets of a real server (SeaweedFS)."""

import hashlib
import os
import resource
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from tests.contract.storages.seaweedfs import SeaweedFS
from turnmill.schemas.errors import NotFound, StorageUnavailable
from turnmill.schemas.files.local import LocalStorage
from turnmill.schemas.files.opening import STORAGES, open_storage
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings import S3Settings, load_settings

TENANT = new_id()
TEXT = b"Order 4711 has not arrived.\n"
_numbers = count(1)


class Place(NamedTuple):
    """A storage, another view of it as another process has, and all that is kept behind it."""

    storage: Storage
    again: Callable[[], Storage]
    kept: Callable[[], list[str]]
    fail: Callable[[], Storage]


def _local(tmp_path: Path) -> Place:
    root = tmp_path / "files"
    file = tmp_path / "no-folder"
    file.write_text("")

    def opened(folder: Path = root) -> Storage:
        return open_storage(load_settings(files={"folder": folder}))

    def kept() -> list[str]:
        return [path.name for path in root.rglob("*") if path.is_file() and path.name != "owner"]

    return Place(opened(), opened, kept, lambda: opened(file))


def _s3(server: SeaweedFS, versioning: str) -> Place:
    bucket = server.make_bucket(f"contract{next(_numbers)}", versioning)

    def opened(settings: S3Settings = bucket) -> Storage:
        return open_storage(load_settings(files={"storage": "s3"}, s3=settings.model_dump()))

    def kept() -> list[str]:
        assert bucket.bucket is not None
        names = server.versions(bucket.bucket)
        assert all(name.startswith("of/turnmill/") for name in names)
        return [name for name in names if not name.endswith("/owner")]

    return Place(
        opened(), opened, kept, lambda: opened(bucket.model_copy(update={"bucket": "no-bucket"}))
    )


#: Each storage of the registry, in each state that what is behind it may have.
CASES = {"local": [""], "s3": ["", "Enabled", "Suspended"]}


@pytest.fixture(
    params=[(name, state) for name in STORAGES for state in CASES[name]],
    ids=lambda case: "-".join(each for each in case if each),
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    name, state = request.param
    if name == "local":
        yield _local(tmp_path)
    else:
        yield _s3(request.getfixturevalue("seaweedfs"), state)


def store(storage: Storage, content: bytes = TEXT, file_id: UUID | None = None) -> Key:
    key = Key(TENANT, file_id or new_id())
    with storage.draft() as draft:
        draft.write(content)
        draft.publish(key)
    return key


def few_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a listing has several pages, where there are any."""
    if find_spec("botocore"):
        monkeypatch.setattr("turnmill.schemas.files.s3.storage.PAGE_KEYS", 2)


def read(storage: Storage, key: Key) -> bytes:
    with storage.open(key) as content:
        return content.read()


def test_what_is_published_is_read_by_every_process(place: Place) -> None:
    key = Key(TENANT, new_id())
    with place.storage.draft() as draft:
        for piece in (b"Order ", b"4711"):
            draft.write(piece)
        assert (draft.size, draft.head) == (10, b"Order 4711")
        assert draft.digest == hashlib.sha256(b"Order 4711").digest()
        assert not place.again().has(key)
        draft.publish(key)
    assert read(place.again(), key) == b"Order 4711"
    assert place.again().has(key)
    assert not place.again().has(Key(new_id(), key.file_id))


def test_what_is_not_published_is_nowhere(place: Place) -> None:
    store(place.storage)
    before = place.kept()
    with pytest.raises(ZeroDivisionError), place.storage.draft() as draft:
        draft.write(TEXT)
        raise ZeroDivisionError
    assert place.kept() == before


def test_a_large_file_passes_through_without_being_held_in_memory(place: Place) -> None:
    piece, pieces = os.urandom(1024 * 1024), 24
    sent, received = hashlib.sha256(), hashlib.sha256()
    key = Key(TENANT, new_id())
    place.storage.has(key)  # what is loaded once
    tracemalloc.start()
    with place.storage.draft() as draft:
        for _ in range(pieces):
            draft.write(piece)
            sent.update(piece)
        draft.publish(key)
    with place.storage.open(key) as content:
        while found := content.read(64 * 1024):
            received.update(found)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert received.digest() == sent.digest()
    assert most < 6 * len(piece)


def test_the_same_key_again_has_the_new_bytes(place: Place) -> None:
    key = store(place.storage)
    store(place.storage, b"anew", key.file_id)
    assert read(place.storage, key) == b"anew"


def test_a_file_that_is_empty_is_one(place: Place) -> None:
    key = store(place.storage, b"")
    assert place.storage.has(key) and read(place.storage, key) == b""


def test_what_is_deleted_is_kept_nowhere(place: Place) -> None:
    other = store(place.storage)
    before = place.kept()
    key = store(place.storage)
    store(place.storage, b"anew", key.file_id)
    assert len(place.kept()) > len(before)
    place.storage.delete(key)
    assert sorted(place.kept()) == sorted(before)
    assert not place.storage.has(key)
    with pytest.raises(NotFound):
        place.storage.open(key)
    place.storage.delete(key)  # again, as after a transaction that was rolled back
    assert sorted(place.kept()) == sorted(before)
    assert read(place.storage, other) == TEXT


def test_a_file_that_another_machine_deleted_is_gone_whatever_the_cache_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, whose client answers `stat` from its attribute cache for some seconds."""
    storage = LocalStorage(tmp_path)
    key = store(storage)
    cached = storage.path(key).stat()
    storage.path(key).unlink()
    monkeypatch.setattr(os, "stat", lambda *_, **__: cached)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: cached)
    assert not storage.has(key)
    assert storage.missing([key]) == [key]


def test_what_is_missing_is_found_among_many(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    few_a_page(monkeypatch)
    keys = sorted((store(place.storage) for _ in range(9)), key=lambda key: key.file_id)
    gone = [keys[0], keys[4], keys[8]]
    for key in gone:
        place.storage.delete(key)
    assert place.storage.missing(keys) == gone
    assert place.storage.missing(keys[1:4]) == []
    assert place.storage.missing([keys[4]]) == [keys[4]]
    assert place.storage.missing([]) == []
    strangers = [key._replace(tenant_id=new_id()) for key in keys[1:3]]
    assert place.storage.missing(strangers) == strangers


def test_keys_are_those_of_files_that_are_old_enough(
    place: Place, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    few_a_page(monkeypatch)
    stored = {store(place.storage) for _ in range(5)}
    place.storage.claim("me")
    eventually(lambda: set(place.storage.keys(0)) == stored)  # S3 tells whole seconds
    assert list(place.storage.keys(3600)) == []


def test_files_belong_to_whoever_claims_them_first(place: Place) -> None:
    assert place.storage.owned_since("me") is None
    store(place.storage)
    place.storage.claim("me")
    for storage in (place.again(), place.storage):
        with pytest.raises(StorageUnavailable, match="another deployment, me,") as refused:
            storage.claim("you")
        assert "name another" in refused.value.remedy
        with pytest.raises(StorageUnavailable):
            storage.refuse_other("you")
    place.again().refuse_other("me")
    since = place.again().owned_since("me")
    assert since is not None and abs(datetime.now(UTC) - since) < timedelta(minutes=1)
    assert place.again().owned_since("you") is None


def test_of_many_that_claim_at_once_one_has_the_files(place: Place) -> None:
    store(place.storage)
    names = [f"deployment-{number}" for number in range(4)]
    with ThreadPoolExecutor(len(names)) as threads:
        claims = [threads.submit(place.again().claim, name) for name in names]
        assert [claim.exception() for claim in claims].count(None) >= 1
    assert sum(place.storage.owned_since(name) is not None for name in names) == 1


def test_a_storage_that_is_away_says_so_and_loses_nothing(place: Place) -> None:
    failing = place.fail()
    with pytest.raises(StorageUnavailable):
        store(failing)
    with pytest.raises(StorageUnavailable):
        failing.delete(Key(TENANT, new_id()))
    with pytest.raises(StorageUnavailable):
        read(failing, Key(TENANT, new_id()))


def test_a_disk_that_is_full_is_the_storage_that_is_away(place: Place) -> None:
    """Small contents wait in a buffer, which is written again when the draft is closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = place.kept()
    small = [2000] if isinstance(place.storage, LocalStorage) else []  # S3 keeps it in memory
    for size in [*small, 2**20 + 2000]:
        try:
            with pytest.raises(StorageUnavailable), place.storage.draft() as draft:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
                draft.write(b"x" * size)
                draft.publish(Key(TENANT, new_id()))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert place.kept() == before
    store(place.storage)


def test_a_disk_that_is_nearly_full_is_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(load_settings(files={"folder": tmp_path}))
    assert storage.check() == []
    left = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: left)
    [doubt] = storage.check()
    assert "3 MiB left" in doubt.detail


def test_a_sound_storage_leaves_no_doubt_and_no_trace_of_the_check(place: Place) -> None:
    store(place.storage)
    before = place.kept()
    assert place.storage.check() == []
    assert place.kept() == before
    assert place.storage.place

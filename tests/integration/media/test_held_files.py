"""Files that their storage refuses to delete: each fails alone in a sweep, rests and is told."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import openai
import psycopg
import pytest
from structlog.testing import capture_logs

from tests.integration.media.conftest import Site
from turnmill.producer.cli.app import main
from turnmill.schemas.errors import StorageUnavailable
from turnmill.schemas.files import copying
from turnmill.schemas.files.local import LocalDraft, LocalStorage
from turnmill.schemas.files.storage import Key
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.files import undeleted
from turnmill.schemas.store.memory.orphans import KEEP_FILE

TEXT = b"Order 4711 has not arrived.\n"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def expire_all(site: Site) -> None:
    site.database.run("UPDATE files SET expires_at = now() - interval '1 s' RETURNING id")


def block(site: Site, file: Any) -> Path:
    """Put into a file's place what no `unlink` removes, not even root's."""
    place = site.storage.path(Key(site.tenant_id, UUID(hex=file.id.removeprefix("file_"))))
    place.unlink()
    place.mkdir()
    (place / "held").touch()
    return place


def make_due(site: Site) -> None:
    site.database.run("UPDATE undeleted_files SET due_at = now() RETURNING file_id")


class Refusing(LocalStorage):
    """Deletes all but some files."""

    def __init__(self, root: Path, kept: set[str]) -> None:
        super().__init__(root)
        self.kept = kept
        self.asked: list[str] = []

    def delete(self, key: Key) -> None:
        self.asked.append(key.file_id.hex)
        if key.file_id.hex in self.kept:
            raise StorageUnavailable("It is held.")
        super().delete(key)


def test_files_that_cannot_be_deleted_keep_no_other(site: Site) -> None:
    held = [site.upload(TEXT) for _ in range(12)]
    last = site.upload(TEXT)
    places = [block(site, each) for each in held]
    expire_all(site)
    orphan = site.storage.path(Key(site.tenant_id, new_id()))
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"bytes without a row")
    os.utime(orphan, (0, 0))
    with capture_logs() as logs:
        for _ in range(2):
            assert site.prune()["files"] == 1
            make_due(site)
            last = site.upload(TEXT)
            expire_all(site)
    assert [each["event"] for each in logs].count("file.not_deleted") == 1
    assert {each.id for each in site.openai.files.list()} == {each.id for each in (*held, last)}
    assert not orphan.exists()
    [row] = site.database.run(
        "SELECT count(*) AS n, min(failures) AS least, max(failures) AS most FROM undeleted_files"
    )
    assert (row.n, row.least, row.most) == (12, 2, 2)
    for place in places:
        (place / "held").unlink()
        place.rmdir()
    # Those that failed rest; what was not tried yet does not wait for them.
    make_due(site)
    assert site.prune()["files"] == 13
    assert list(site.openai.files.list()) == []
    assert site.database.run("SELECT file_id FROM undeleted_files") == []


def test_a_file_that_could_not_be_deleted_rests_and_then_comes_last(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = site.upload(TEXT).id.removeprefix("file_")
    site.storage = Refusing(site.settings.files_dir, {held})
    expire_all(site)
    for _ in range(3):
        site.prune()
    assert site.storage.asked == [held]
    make_due(site)
    younger = site.upload(TEXT).id.removeprefix("file_")
    expire_all(site)
    site.prune()
    assert site.storage.asked == [held, younger, held]


def test_a_storage_that_takes_its_time_to_refuse_ends_the_round(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undeleted, "VAIN_S", 0.0)
    ids = {site.upload(f"{each}".encode(), "x").id.removeprefix("file_") for each in range(4)}
    expire_all(site)
    site.storage = Refusing(site.settings.files_dir, ids)
    for tried in range(1, 5):
        site.prune()
        # Each round has others: those that failed rest.
        assert len(site.storage.asked) == len(set(site.storage.asked)) == tried


def test_bytes_without_a_row_that_cannot_be_deleted_keep_no_others(site: Site) -> None:
    site.upload(TEXT)  # claims the storage
    keys = [Key(site.tenant_id, new_id()) for _ in range(3)]
    for key in keys:
        path = site.storage.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bytes without a row")
        os.utime(path, (0, 0))
    held = keys[1].file_id.hex
    site.storage = Refusing(site.settings.files_dir, {held})
    for _ in range(2):
        site.prune()
    assert [site.storage.has(key) for key in keys] == [False, True, False]
    assert site.storage.asked.count(held) == 1
    site.storage.kept = set()
    make_due(site)
    site.prune()
    assert not site.storage.has(keys[1])
    assert site.database.run("SELECT file_id FROM undeleted_files") == []


def test_a_file_that_cannot_be_looked_at_is_not_lost_and_keeps_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _, unread = (site.upload(each) for each in (TEXT, PNG, b"on a broken sector"))
    [path] = [each for each in site.stored() if each.read_bytes() == PNG]
    path.unlink()
    site.made_later()
    look = Path.stat

    def fail(path: Path, **given: Any) -> os.stat_result:
        if path.name == unread.id.removeprefix("file_"):
            raise OSError(errno.EIO, "Input/output error")
        return look(path, **given)

    monkeypatch.setattr(Path, "stat", fail)
    site.prune()
    assert {each.id for each in site.openai.files.list()} == {kept.id, unread.id}


def test_a_folder_that_cannot_be_read_keeps_no_other_from_being_swept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.upload(TEXT)  # claims the storage
    orphan, unread = (site.storage.path(Key(tenant, new_id())) for tenant in (new_id(), new_id()))
    for path in (orphan, unread):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"bytes without a row")
        os.utime(path, (0, 0))
    scan, locked = os.scandir, {unread.parent}

    def fail(folder: Any) -> Any:
        if Path(folder) in locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", fail)  # root may read all
    with capture_logs() as logs:
        site.prune()
    assert (orphan.exists(), unread.exists()) == (False, True)
    assert [each["event"] for each in logs if each["event"] != "call.answered"] == [
        "files.not_swept"
    ]
    # What a volume has at its root is nobody's tenant.
    locked.clear()
    locked.add(site.settings.files_dir / "lost+found")
    (site.settings.files_dir / "lost+found").mkdir()
    with capture_logs() as logs:
        site.prune()
    assert (unread.exists(), logs) == (False, [])


def test_a_folder_that_does_not_answer_ends_the_round_and_is_no_files_fault(site: Site) -> None:
    places = [block(site, site.upload(text)) for text in (TEXT, PNG)]
    expire_all(site)
    mark = site.settings.files_dir / "owner"
    mark.rename(mark.with_name("kept"))
    mark.symlink_to(mark)  # cannot be read, even by root
    with capture_logs() as logs:
        site.prune()
    assert [each["event"] for each in logs if each["event"] != "call.answered"] == [
        "files.not_swept"
    ]
    assert site.database.run("SELECT file_id FROM undeleted_files") == []
    mark.unlink()
    mark.with_name("kept").rename(mark)
    for place in places:
        (place / "held").unlink()
        place.rmdir()
    assert site.prune()["files"] == 2


def test_the_age_of_a_note_that_nobody_needs_is_bounded(site: Site) -> None:
    """As of a file that a process of an older release has deleted, or kept."""
    file = site.upload(TEXT)
    block(site, file)
    expire_all(site)
    site.prune()
    site.database.run("UPDATE files SET expires_at = NULL RETURNING id")
    make_due(site)
    site.prune()
    assert len(site.database.run("SELECT file_id FROM undeleted_files")) == 1
    site.database.run(
        "UPDATE undeleted_files SET due_at = now() - interval '3 days' RETURNING file_id"
    )
    site.prune()
    assert site.database.run("SELECT file_id FROM undeleted_files") == []
    assert [each.id for each in site.openai.files.list()] == [file.id]


def test_a_note_of_a_file_that_waits_behind_many_others_is_kept(site: Site) -> None:
    block(site, site.upload(TEXT))
    expire_all(site)
    site.prune()
    site.database.run("UPDATE undeleted_files SET due_at = now() - interval '3 days'")
    site.prune()
    [row] = site.database.run("SELECT failures FROM undeleted_files")
    assert row.failures == 2


def test_a_note_that_is_locked_keeps_no_file_from_being_swept(
    site: Site, database_url: str
) -> None:
    block(site, site.upload(TEXT))
    expire_all(site)
    site.prune()
    site.upload(PNG)
    site.database.run("UPDATE undeleted_files SET due_at = now() - interval '3 days'")
    site.database.run("UPDATE files SET expires_at = NULL WHERE mime = 'text/plain'")
    site.database.run("UPDATE files SET expires_at = to_timestamp(0) WHERE mime = 'image/png'")
    with psycopg.connect(database_url) as link:
        link.execute("SELECT FROM undeleted_files FOR UPDATE")
        assert site.prune()["files"] == 1


def test_who_deletes_a_file_and_who_stores_it_again_lock_its_note_first(
    site: Site, database_url: str, eventually: Any
) -> None:
    file = site.upload(TEXT)
    place = block(site, file)
    expire_all(site)
    site.prune()
    (place / "held").unlink()
    place.rmdir()
    [key] = site.database.fetch(Key, "SELECT tenant_id, id AS file_id FROM files")
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as link:
        link.execute(KEEP_FILE, key._asdict())
        deleted = pool.submit(site.openai.files.delete, file.id)
        eventually(lambda: site.database.run(waits, (link.info.dbname,)))
        link.execute("SELECT FROM files FOR UPDATE NOWAIT")
        link.rollback()
        assert deleted.result(20).deleted


def test_who_deletes_a_file_that_retention_could_not_deletes_its_note(site: Site) -> None:
    file = site.upload(TEXT)
    place = block(site, file)
    expire_all(site)
    site.prune()
    with pytest.raises(openai.InternalServerError):
        site.openai.files.delete(file.id)
    assert len(site.database.run("SELECT file_id FROM undeleted_files")) == 1
    with site.http as http:
        assert "\nturnmill_files_undeleted_count 1.0\n" in http.get("/metrics").text
    (place / "held").unlink()
    place.rmdir()
    site.openai.files.delete(file.id)
    assert site.database.run("SELECT file_id FROM undeleted_files") == []


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_copied(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held, *others = [site.upload(f"{each}".encode()) for each in range(3)]
    place = block(site, held)
    target = tmp_path / "elsewhere"
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("TURNMILL_FILES__FOLDER", str(target))
    url = site.settings.database.url.get_secret_value()
    monkeypatch.setenv("TURNMILL_DATABASE__URL", url)

    def copy() -> tuple[object, str]:
        monkeypatch.setattr(
            "sys.argv", ["turnmill", "db", "copy-files", str(site.settings.files_dir)]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, " ".join((said.out + said.err).split())

    status, said = copy()
    assert (status, "2 files copied" in said) == (1, True), said
    assert "1 files could not be copied" in said
    assert "file.not_copied" in said and "Is a directory" in said
    assert len([path for path in target.rglob("*") if path.is_file()]) == len(others)
    (place / "held").unlink()
    place.rmdir()
    place.write_bytes(b"0")
    status, said = copy()
    assert (status, "1 files copied, 2 were there, 0 are in neither" in said) == (0, True), said


class Full(LocalStorage):
    """Takes some files, and refuses each after these."""

    def __init__(self, root: Path, taken: int) -> None:
        super().__init__(root)
        self.asked, self.taken = 0, taken

    @contextmanager
    def draft(self) -> Iterator[LocalDraft]:
        self.asked += 1
        if self.asked > self.taken:
            raise StorageUnavailable("It is full.")
        with super().draft() as draft:
            yield draft


def test_a_target_that_refuses_every_file_is_not_asked_for_all_of_them(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in range(14):
        site.upload(f"{each}".encode())
    one_by_one = Full(tmp_path / "target", 2)
    *_, counts = copying.copy_files(site.database, site.storage, one_by_one)
    assert counts == {"copied": 2, "failed": 12, "there": 0}  # refused within milliseconds
    monkeypatch.setattr(copying, "VAIN_S", 0.0)
    full = Full(tmp_path / "other", 2)
    with pytest.raises(StorageUnavailable, match=r"2 files were copied, .* 10 in a row could not"):
        list(copying.copy_files(site.database, site.storage, full))
    assert full.asked == 12

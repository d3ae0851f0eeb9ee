"""Files in a bucket, as an API, workers and the doctor on several machines have them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import UUID

import openai
import pytest

from tests.contract.storages.seaweedfs import ACCESS_KEY, SECRET_KEY, Front, SeaweedFS
from tests.integration.media.conftest import MakeSite, Site
from tests.integration.memory.conftest import Listening
from tests.integration.memory.world import World, forget, send
from turnmill.infra.migrations import head_revision
from turnmill.producer.cli.app import main
from turnmill.producer.doctor import Finding, Level, diagnose
from turnmill.schemas.errors import StorageFull, StorageUnavailable
from turnmill.schemas.files.files import File, Purpose
from turnmill.schemas.files.opening import open_files, open_storage
from turnmill.schemas.files.s3.storage import S3Draft
from turnmill.schemas.files.storage import Key
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres import links
from turnmill.schemas.settings import S3Settings, Settings, load_settings
from turnmill.schemas.store.files.undeleted import retry_now
from turnmill.schemas.store.memory.erasures import list_erasures

pytest.importorskip("botocore", reason="pip install 'turnmill[s3]'")

TEXT = b"Order 4711 has not arrived.\n"
LARGE = bytes(range(256)) * 40_000
WORD = "quetzalcoatlus"
#: Transactions that wait for something else than PostgreSQL.
IDLE = (
    "SELECT 1 FROM pg_stat_activity "
    "WHERE datname = current_database() AND state = 'idle in transaction'"
)


def settings_of(bucket: S3Settings, database_url: str, data: Path, **sections: Any) -> Settings:
    """Of a process whose own disk has no file."""
    return load_settings(
        **{
            "data": data,
            "database": {"url": database_url},
            "files": {"storage": "s3"},
            "s3": bucket.model_dump(),
            **sections,
        }
    )


def variables_of(settings: S3Settings, /, **changes: str) -> dict[str, str]:
    given = {"bucket": str(settings.bucket), "prefix": settings.prefix}
    given |= {"endpoint": str(settings.endpoint), "access_key": ACCESS_KEY}
    given |= {"secret_key": SECRET_KEY, **changes}
    return {f"TURNMILL_S3__{name.upper()}": value for name, value in given.items()}


@pytest.fixture
def stored(bucket: S3Settings, seaweedfs: SeaweedFS) -> Callable[[], list[str]]:
    """The objects of files, old versions too."""

    def list_all() -> list[str]:
        names = seaweedfs.versions(str(bucket.bucket))
        return [name for name in names if not name.endswith("/owner")]

    return list_all


@pytest.fixture
def site(make_site: MakeSite, bucket: S3Settings) -> Site:
    return make_site(files={"storage": "s3"}, s3=bucket.model_dump())


def test_a_file_is_uploaded_here_read_on_another_machine_and_deleted_for_good(
    site: Site, bucket: S3Settings, stored: Callable[[], list[str]], tmp_path: Path
) -> None:
    file = site.upload(LARGE, "photo.bin")
    assert site.openai.files.content(file.id).read() == LARGE
    assert not (site.settings.data / "files").exists()
    url = site.settings.database.url.get_secret_value()
    elsewhere = settings_of(bucket, url, tmp_path / "worker")
    files = open_files(site.database, elsewhere)
    [found] = files.page(site.tenant_id, limit=10)
    assert files.read(found) == LARGE
    assert len(stored()) == 1
    site.openai.files.delete(file.id)
    assert stored() == []


def test_a_tenant_that_is_full_leaves_nothing_in_the_bucket(
    site: Site, bucket: S3Settings, stored: Callable[[], list[str]], tmp_path: Path
) -> None:
    url = site.settings.database.url.get_secret_value()
    limits = {"storage": "s3", "max_tenant_bytes": 1024}
    small = settings_of(bucket, url, tmp_path, files=limits)
    with open_storage(small).draft() as draft:
        draft.write(LARGE)
        with pytest.raises(StorageFull):
            open_files(site.database, small).save(
                draft, tenant_id=site.tenant_id, name="x", purpose=Purpose.USER_DATA
            )
    assert stored() == []


def test_rows_and_objects_that_lost_each_other_are_pruned(
    site: Site,
    bucket: S3Settings,
    seaweedfs: SeaweedFS,
    stored: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    storage = site.storage = open_storage(site.settings)  # type: ignore[assignment]
    kept, lost = site.upload(TEXT), site.upload(b"lost")
    [key] = site.database.run("SELECT tenant_id, id FROM files WHERE bytes = 4")
    storage.delete(Key(*key))
    with storage.draft() as draft:
        draft.write(b"no row has it")
        draft.publish(Key(site.tenant_id, new_id()))
    assert len(stored()) == 2
    site.made_later()
    site.prune()
    assert [each.id for each in site.openai.files.list()] == [kept.id]
    with pytest.raises(openai.NotFoundError):
        site.openai.files.retrieve(lost.id)
    assert len(stored()) == 2  # its row might still be on its way
    monkeypatch.setattr("turnmill.workers.upkeep.files.ORPHAN_AGE_S", 1.0)
    eventually(lambda: site.prune() and len(stored()) == 1)
    assert site.openai.files.content(kept.id).read() == TEXT


def test_a_worker_that_sees_another_bucket_takes_no_file_for_lost(
    site: Site, seaweedfs: SeaweedFS
) -> None:
    file = site.upload(TEXT)
    site.made_later()
    for other in (seaweedfs.make_bucket("anothers").bucket, "no-bucket-at-all"):
        changed = site.settings.s3.model_copy(update={"bucket": other})
        site.storage = open_storage(  # type: ignore[assignment]
            site.settings.model_copy(update={"s3": changed})
        )
        site.prune()
    assert site.openai.files.content(file.id).read() == TEXT


def test_files_that_were_not_copied_to_a_new_bucket_are_not_lost(
    site: Site, seaweedfs: SeaweedFS
) -> None:
    old = site.storage
    file = site.upload(TEXT)
    changed = site.settings.s3.model_copy(update={"bucket": seaweedfs.make_bucket("new").bucket})
    site.storage = open_storage(  # type: ignore[assignment]
        site.settings.model_copy(update={"s3": changed})
    )
    (deployment,) = site.database.run("SELECT id FROM deployment")
    site.storage.claim(deployment[0])
    assert site.storage.owned_since(deployment[0]) is not None
    site.prune()
    site.storage = old
    assert site.openai.files.content(file.id).read() == TEXT


def test_nothing_is_stored_where_another_deployment_has_its_files(
    site: Site,
    bucket: S3Settings,
    stored: Callable[[], list[str]],
    doctor: Callable[..., Finding],
) -> None:
    """Its pruner would take them for bytes whose row is gone."""
    open_storage(site.settings).claim("production")
    with pytest.raises(openai.InternalServerError) as failed:
        site.upload(TEXT)
    assert (failed.value.status_code, failed.value.code) == (503, "storage_unavailable")
    assert stored() == []
    finding = doctor()
    assert (finding.level, "production" in finding.detail) == (Level.BROKEN, True)
    assert "TURNMILL_S3__PREFIX" in finding.fix
    assert doctor(prefix="staging/").level is Level.OK
    assert site.database.run("SELECT 1 FROM files") == []


def test_who_stores_asks_once_whose_the_bucket_is(
    make_site: MakeSite, bucket: S3Settings, seaweedfs: SeaweedFS
) -> None:
    asked: list[str] = []

    def look(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith("/owner"):
            asked.append(request.command)

    with Front(seaweedfs) as front:
        seen = bucket.model_copy(update={"endpoint": front.url})
        site = make_site(files={"storage": "s3"}, s3=seen.model_dump())
        front.fault = look
        site.upload(TEXT)
        first = len(asked)
        site.upload(LARGE)
    assert asked[:first] == asked and "PUT" in asked


def test_while_the_bucket_is_away_uploads_are_refused_and_nothing_is_shown(
    make_site: MakeSite, bucket: S3Settings
) -> None:
    away = bucket.model_copy(update={"endpoint": "http://127.0.0.1:9", "timeout_s": 1})
    site = make_site(files={"storage": "s3"}, s3=away.model_dump())
    with pytest.raises(openai.InternalServerError) as failed:
        site.upload(TEXT)
    assert (failed.value.status_code, failed.value.code) == (503, "storage_unavailable")
    assert str(bucket.bucket) not in str(failed.value)
    assert site.database.run("SELECT 1 FROM files") == []


def save(
    site: Site, settings: Settings, file_id: UUID | None = None, *, is_owed: bool = False
) -> File:
    with open_storage(settings).draft() as draft:
        draft.write(TEXT)
        return open_files(site.database, settings).save(
            draft,
            tenant_id=site.tenant_id,
            name="x",
            purpose=Purpose.MESSAGE,
            file_id=file_id,
            is_owed=is_owed,
        )


@pytest.mark.parametrize("is_part", [False, True])
def test_no_transaction_waits_for_the_bytes_of_an_upload_or_a_part(
    make_site: MakeSite, bucket: S3Settings, seaweedfs: SeaweedFS, is_part: bool
) -> None:
    """PostgreSQL ends a transaction that is idle for 10 s; a large upload may take minutes."""
    found: list[list[Any]] = []

    def look(request: BaseHTTPRequestHandler) -> None:
        if request.command == "PUT" and not request.path.endswith("/owner"):
            found.append(site.database.run(IDLE))

    with Front(seaweedfs) as front:
        seen = bucket.model_copy(update={"endpoint": front.url})
        site = make_site(files={"storage": "s3"}, s3=seen.model_dump())
        front.fault = look
        if is_part:
            file = save(site, site.settings, new_id())
            assert open_files(site.database, site.settings).read(file) == TEXT
        else:
            assert site.openai.files.content(site.upload(TEXT).id).read() == TEXT
    assert found == [[]]


def test_what_a_channel_fetches_may_take_longer_than_transactions_may_be_idle(
    make_site: MakeSite,
    bucket: S3Settings,
    seaweedfs: SeaweedFS,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its row is locked meanwhile: who is forgotten does not come back with the bytes."""
    session = "turnmill.schemas.postgres.links._SESSION"
    monkeypatch.setattr(
        session, links._SESSION.replace("session_timeout = '10s'", "session_timeout = '100ms'")
    )
    longer = f"{IDLE} AND clock_timestamp() - state_change > interval '300 ms'"

    def hold(request: BaseHTTPRequestHandler) -> None:
        if request.command == "PUT" and not request.path.endswith("/owner"):
            eventually(lambda: site.database.run(longer), 5.0)

    with Front(seaweedfs) as front:
        slow = bucket.model_copy(update={"endpoint": front.url})
        site = make_site(files={"storage": "s3"}, s3=slow.model_dump())
        file = save(site, site.settings, new_id())
        site.database.run("UPDATE files SET source = '{}' RETURNING id")
        front.fault = hold
        save(site, site.settings, file.file_id, is_owed=True)
    assert site.database.run("SELECT source FROM files")[0].source is None


def test_a_part_whose_tenant_is_full_leaves_nothing_and_takes_nothing(
    site: Site, stored: Callable[[], list[str]]
) -> None:
    full = site.settings.model_copy(
        update={"files": site.settings.files.model_copy(update={"max_tenant_bytes": 10})}
    )
    with pytest.raises(StorageFull):
        save(site, full, new_id())
    assert stored() == []
    there = save(site, site.settings, new_id())
    site.upload(TEXT)
    with pytest.raises(StorageFull):
        save(site, full, there.file_id)
    assert open_files(site.database, site.settings).read(there) == TEXT


def test_a_part_that_is_deleted_while_it_is_stored_again_is_not_there_without_bytes(
    site: Site, stored: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its bytes and its row, another process deletes the same content."""
    file = save(site, site.settings, new_id())
    files = open_files(site.database, site.settings)
    publish = S3Draft.publish

    def publish_and_lose(draft: S3Draft, key: Key) -> None:
        publish(draft, key)
        files.delete(site.tenant_id, file.file_id)

    with monkeypatch.context() as patch:
        patch.setattr(S3Draft, "publish", publish_and_lose)
        with pytest.raises(StorageUnavailable, match="Try again"):
            save(site, site.settings, file.file_id)
    assert (site.database.run("SELECT id FROM files"), stored()) == ([], [])
    assert files.read(save(site, site.settings, file.file_id)) == TEXT


def test_while_a_bucket_takes_its_time_other_calls_are_answered(
    make_site: MakeSite, bucket: S3Settings, seaweedfs: SeaweedFS, database_url: str
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def hold(request: BaseHTTPRequestHandler) -> None:
        if request.command == "PUT" and not request.path.endswith("/owner"):
            begun.set()
            goes_on.wait(20.0)

    with Front(seaweedfs) as front, ThreadPoolExecutor(1) as threads:
        slow = bucket.model_copy(update={"endpoint": front.url, "timeout_s": 25})
        one = {"url": database_url, "pool_size": 3}  # one thread answers all other calls
        site = make_site(files={"storage": "s3"}, s3=slow.model_dump(), database=one)
        front.fault = hold
        upload = threads.submit(site.upload, TEXT)
        try:
            assert begun.wait(30.0)
            listed = site.openai.with_options(timeout=10.0, max_retries=0).files.list()
            assert listed.data == []
        finally:
            goes_on.set()
        assert upload.result().bytes == len(TEXT)


def test_a_team_moves_from_a_folder_to_a_bucket(
    make_site: MakeSite,
    bucket: S3Settings,
    stored: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = make_site()
    files = [before.upload(TEXT), before.upload(LARGE), before.upload(b"lost")]
    [lost] = [path for path in before.stored() if path.read_bytes() == b"lost"]
    lost.unlink()
    orphan = before.storage.path(Key(before.tenant_id, new_id()))
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"no row has it")
    folder = before.settings.files_dir
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    url = before.settings.database.url.get_secret_value()
    monkeypatch.setenv("TURNMILL_DATABASE__URL", url)
    monkeypatch.setenv("TURNMILL_FILES__STORAGE", "s3")
    for name, value in variables_of(bucket).items():
        monkeypatch.setenv(name, value)
    for copied, there in ((2, 0), (0, 2)):
        monkeypatch.setattr("sys.argv", ["turnmill", "db", "copy-files", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        said = " ".join(capsys.readouterr().out.split())
        assert f"{copied} files copied, {there} were there, 1 are in neither" in said
    assert len(stored()) == 2
    after = make_site(files={"storage": "s3"}, s3=bucket.model_dump())
    for file, content in zip(files, (TEXT, LARGE), strict=False):
        assert after.openai.files.content(file.id).read() == content


def test_who_is_forgotten_is_in_no_version_of_any_object(
    system: Any,
    bucket: S3Settings,
    seaweedfs: SeaweedFS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Listening()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    world = _world_in(bucket, system, tmp_path)
    for word in (WORD, "archaeopteryx"):
        world.upload_and_ask(word)
        world.upload_and_ask(word)
    assert _canaries(seaweedfs, bucket, WORD) == 2
    world.forget(WORD)
    assert _canaries(seaweedfs, bucket, WORD) == 0
    assert _canaries(seaweedfs, bucket, "archaeopteryx") == 2


def test_an_object_that_is_locked_keeps_no_other_file_of_who_is_forgotten(
    system: Any,
    bucket: S3Settings,
    seaweedfs: SeaweedFS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As object lock answers: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html"""
    engine = Listening()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    locked: set[str] = set()

    def fault(request: BaseHTTPRequestHandler) -> tuple[int, bytes] | None:
        is_locked = any(name in request.path for name in locked)
        return (403, b"") if request.command == "DELETE" and is_locked else None

    with Front(seaweedfs) as front:
        front.fault = fault
        seen = bucket.model_copy(update={"endpoint": front.url})
        world = _world_in(seen, system, tmp_path)
        files = [world.upload(f"{WORD} {each}") for each in range(3)]
        for file in files:
            send(world, WORD, file)
        locked |= {files[0].file_id.hex}
        forget(world, WORD)
        assert _canaries(seaweedfs, bucket, WORD) == 1
        [row] = system.database.run("SELECT file_id, reason, remedy FROM undeleted_files")
        assert row.file_id == files[0].file_id
        assert "403" in row.reason and "object lock must be off" in row.remedy
        locked.clear()
        world.erase()
        assert _canaries(seaweedfs, bucket, WORD) == 1, "tried before its pause was over"
        retry_now(system.database)
        world.erase()
    assert _canaries(seaweedfs, bucket, WORD) == 0
    assert list_erasures(system.database, is_open=True) == []


def _world_in(bucket: S3Settings, system: Any, folder: Path) -> World:
    """Where users are forgotten whose files are in the bucket."""
    own = settings_of(bucket, system.settings.database.url.get_secret_value(), folder)
    system.settings = system.settings.model_copy(update={"files": own.files, "s3": own.s3})
    return World(system, system.database, folder / "data")


def _canaries(seaweedfs: SeaweedFS, bucket: S3Settings, word: str) -> int:
    """How many objects of a bucket have the word, counting each version."""
    client, found = seaweedfs.client, 0
    for each in client.list_object_versions(Bucket=bucket.bucket).get("Versions", []):
        version = {"Key": each["Key"], "VersionId": each["VersionId"]}
        found += word.encode() in client.get_object(Bucket=bucket.bucket, **version)["Body"].read()
    return found


@pytest.fixture
def doctor(
    bucket: S3Settings, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finding]:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)

    def examine(**variables: str) -> Finding:
        for name, value in variables_of(bucket, **variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TURNMILL_FILES__STORAGE", "s3")
        [finding] = [each for each in diagnose(head_revision()) if each.what == "files"]
        assert SECRET_KEY not in f"{finding}"
        return finding

    return examine


def test_the_doctor_tries_the_bucket(
    doctor: Callable[..., Finding], bucket: S3Settings, stored: Callable[[], list[str]]
) -> None:
    finding = doctor()
    assert finding.level is Level.OK
    assert str(bucket.bucket) in finding.detail
    assert stored() == []


def test_the_doctor_names_what_is_wrong_with_its_remedy(doctor: Callable[..., Finding]) -> None:
    finding = doctor(bucket="nobodys")
    assert finding.level is Level.BROKEN
    assert "NoSuchBucket" in finding.detail
    assert "TURNMILL_S3__BUCKET" in finding.fix


def test_the_doctor_leaves_the_folder_alone(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    [finding] = [each for each in diagnose(head_revision()) if each.what == "files"]
    assert (finding.level, finding.detail) == (Level.OK, f"the folder {tmp_path / 'files'}")
    assert list(tmp_path.iterdir()) == []

"""The storage `s3`'s own rules: versions, faults of servers, secrets."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.contract.storages.seaweedfs import ACCESS_KEY, SECRET_KEY, Front, SeaweedFS, silent
from tests.contract.storages.test_storages import TENANT, TEXT, read, store
from turnmill.schemas.errors import SettingsError, StorageUnavailable
from turnmill.schemas.files.opening import open_storage
from turnmill.schemas.files.storage import Key, Storage
from turnmill.schemas.ids import new_id
from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.settings import LogSettings, S3Settings, load_settings

pytest.importorskip("botocore", reason="pip install 'turnmill[s3]'")


def connect(given: S3Settings, /, **changes: Any) -> Storage:
    settings = given.model_dump() | changes
    return open_storage(load_settings(files={"storage": "s3"}, s3=settings))


@pytest.fixture
def front(seaweedfs: SeaweedFS) -> Iterator[Front]:
    with Front(seaweedfs) as front:
        yield front


def test_not_even_a_mark_of_a_deleted_file_stays_where_versions_are_kept(
    seaweedfs: SeaweedFS, bucket: S3Settings
) -> None:
    storage = connect(bucket)
    key = store(storage)
    seaweedfs.client.delete_object(Bucket=bucket.bucket, Key=_name(bucket, key))
    store(storage, b"anew", key.file_id)
    storage.delete(key)
    for kind in ("Versions", "DeleteMarkers"):
        assert seaweedfs.versions(str(bucket.bucket), kind) == []


def test_a_deletion_that_is_interrupted_never_shows_an_old_version(
    seaweedfs: SeaweedFS, bucket: S3Settings, front: Front
) -> None:
    storage = connect(bucket, endpoint=front.url)
    key = store(storage)
    store(storage, b"anew", key.file_id)
    deleted = []

    def fault(request: BaseHTTPRequestHandler) -> tuple[int, bytes] | None:
        if request.command == "DELETE" and "versionId=" in request.path:
            deleted.append(request.path)
            return (403, b"") if len(deleted) > 1 else None
        return None

    front.fault = fault
    with pytest.raises(StorageUnavailable) as failed:
        storage.delete(key)
    assert "s3:DeleteObjectVersion" in failed.value.remedy
    assert len(seaweedfs.versions(str(bucket.bucket))) == 1
    assert not storage.has(key)
    front.fault = lambda _: None
    storage.delete(key)
    assert seaweedfs.versions(str(bucket.bucket)) == []


def test_a_server_that_knows_neither_versions_nor_conditions_will_do(
    bucket: S3Settings, front: Front
) -> None:
    """As Cloudflare's R2 answers: https://developers.cloudflare.com/r2/api/s3/api/"""

    def fault(request: BaseHTTPRequestHandler) -> tuple[int, bytes] | None:
        if request.path.endswith("?versions") or "versions&" in request.path:
            return 501, _error("NotImplemented")
        if request.headers.get("If-None-Match"):
            return 501, _error("NotImplemented")
        return None

    front.fault = fault
    storage = connect(bucket, endpoint=front.url)
    storage.claim("me")
    assert storage.owned_since("me") is not None
    assert [storage.has(store(storage))] == [True]


def _deny_versions(request: BaseHTTPRequestHandler) -> tuple[int, bytes] | None:
    is_asked = "versions" in request.path.partition("?")[2]
    return (403, _error("AccessDenied")) if is_asked else None


def test_versions_that_may_not_be_seen_are_a_doubt(seaweedfs: SeaweedFS, front: Front) -> None:
    bucket = seaweedfs.make_bucket("without-versions")
    front.fault = _deny_versions
    [doubt] = connect(bucket, endpoint=front.url).check()
    assert "cannot be seen" in doubt.detail and "s3:ListBucketVersions" in doubt.remedy


def test_where_versions_are_kept_a_right_that_is_missing_fails_the_deletion(
    seaweedfs: SeaweedFS, bucket: S3Settings, front: Front
) -> None:
    storage = connect(bucket, endpoint=front.url)
    key = store(storage)
    front.fault = _deny_versions
    with pytest.raises(StorageUnavailable, match="AccessDenied") as failed:
        storage.delete(key)
    assert "s3:ListBucketVersions" in failed.value.remedy
    assert seaweedfs.versions(str(bucket.bucket)) != []


def test_versions_that_a_server_keeps_secretly_are_a_doubt(
    seaweedfs: SeaweedFS, bucket: S3Settings, front: Front
) -> None:
    """One that does not say in its answer that it has left a marker."""
    front.hidden = ("x-amz-delete-marker", "x-amz-version-id")
    [doubt] = connect(bucket, endpoint=front.url).check()
    assert "nothing is deleted for good" in doubt.detail and "lifecycle" in doubt.remedy


@pytest.mark.parametrize(
    ("changes", "code", "remedy"),
    [
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch", "TURNMILL_S3__SECRET_KEY"),
        ({"access_key": "AKIANOBODY"}, "InvalidAccessKeyId", "TURNMILL_S3__ACCESS_KEY"),
        ({"bucket": "nobodys"}, "NoSuchBucket", "TURNMILL_S3__BUCKET"),
        ({"endpoint": "http://127.0.0.1:9"}, "EndpointConnectionError", "TURNMILL_S3__ENDPOINT"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy_and_without_a_secret(
    bucket: S3Settings,
    changes: dict[str, Any],
    code: str,
    remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = connect(bucket, **changes)
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageUnavailable) as failed:
        storage.check()
    assert code in failed.value.message
    assert remedy in failed.value.remedy
    for shown in (failed.value.message, failed.value.remedy, caplog.text, storage.place):
        assert SECRET_KEY not in shown


def test_credentials_come_from_where_awss_tools_look(
    bucket: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    storage = connect(bucket, access_key=None, secret_key=None)
    assert read(storage, store(storage)) == TEXT


#: How AWS's own tools are led to another server.
ELSEWHERE = {
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_CONFIG_FILE": "[default]\nendpoint_url = http://127.0.0.1:9",
    "AWS_PROFILE": "[profile x]\nservices = s\n[services s]\ns3 =\n  endpoint_url = http://127.0.0.1:9",
}


@pytest.mark.parametrize("variable", ELSEWHERE)
def test_awss_own_settings_lead_the_files_to_no_other_server(
    bucket: S3Settings, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    given = {variable: ELSEWHERE[variable]}
    if "endpoint_url =" in ELSEWHERE[variable]:
        file.write_text(ELSEWHERE[variable])
        given = {"AWS_PROFILE": "x"} if variable == "AWS_PROFILE" else {}
        given["AWS_CONFIG_FILE"] = str(file)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    storage = connect(bucket)
    assert read(storage, store(storage)) == TEXT
    at_aws = connect(bucket, endpoint=None, region="eu-west-1")
    with pytest.raises(StorageUnavailable, match="names another server") as refused:
        at_aws.has(Key(TENANT, new_id()))
    assert "TURNMILL_S3__ENDPOINT" in refused.value.remedy


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server of each client that is made."""
    import botocore.session

    found: list[str] = []
    create = botocore.session.Session.create_client

    def counted(session: Any, *args: Any, **given: Any) -> Any:
        client = create(session, *args, **given)
        found.append(client.meta.endpoint_url)
        return client

    monkeypatch.setattr(botocore.session.Session, "create_client", counted)
    return found


def test_one_client_is_made_for_a_server_that_is_named(
    seaweedfs: SeaweedFS, bucket: S3Settings, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ELSEWHERE["AWS_ENDPOINT_URL"])
    storage = connect(bucket)
    made.clear()
    assert read(storage, store(storage)) == TEXT
    assert made == [seaweedfs.url]


def test_calls_that_are_refused_make_no_client_each(
    bucket: S3Settings, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ELSEWHERE["AWS_ENDPOINT_URL"])
    storage = connect(bucket, endpoint=None, region="eu-west-1")
    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="names another server"):
            storage.has(Key(TENANT, new_id()))
    assert len(made) == 2


def test_awss_own_word_that_such_settings_do_not_count_is_obeyed(
    bucket: S3Settings, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ELSEWHERE["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    # AWS itself is not asked: nobody listens there.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    storage = connect(bucket, endpoint=None, region="eu-west-1")
    with pytest.raises(StorageUnavailable, match="ProxyConnectionError"):
        storage.has(Key(TENANT, new_id()))
    assert set(made) == {"https://s3.eu-west-1.amazonaws.com"}


def test_hosts_that_only_aws_has_do_not_concern_other_servers(
    bucket: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = "  use_accelerate_endpoint = true\n  use_dualstack_endpoint = true\n"
    (tmp_path / "config").write_text(f"[default]\ns3 =\n{hosts}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"):
        monkeypatch.setenv(name, "true")
    storage = connect(bucket)
    assert read(storage, store(storage)) == TEXT


@pytest.mark.parametrize("level", ["debug", "info"])
def test_no_log_has_the_token_of_a_session(
    bucket: S3Settings,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogSettings.model_validate({"level": level}))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIASESSION")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token-of-a-session")
    with pytest.raises(StorageUnavailable):
        connect(bucket, access_key=None, secret_key=None).check()
    logging.getLogger("another.library").warning("was read")
    said = capsys.readouterr().err
    assert "was read" in said
    for secret in (SECRET_KEY, "a-token-of-a-session"):
        assert secret not in said


def test_without_credentials_the_remedy_is_to_set_them(
    bucket: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(StorageUnavailable, match="NoCredentialsError") as failed:
        connect(bucket, access_key=None, secret_key=None).check()
    assert "TURNMILL_S3__ACCESS_KEY" in failed.value.remedy


def test_a_server_that_says_nothing_is_given_up(bucket: S3Settings) -> None:
    with silent() as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        storage = connect(bucket, endpoint=url, timeout_s=0.5)
        began = time.monotonic()
        with pytest.raises(StorageUnavailable, match="ReadTimeoutError"):
            storage.has(Key(TENANT, new_id()))
        assert time.monotonic() - began < 10


def test_a_download_that_breaks_off_is_no_shorter_file(bucket: S3Settings, front: Front) -> None:
    storage = connect(bucket, endpoint=front.url)
    key = store(storage)
    front.fault = lambda request: (200, None) if request.command == "GET" else None
    with pytest.raises(StorageUnavailable), storage.open(key) as content:
        content.read()
    with pytest.raises(StorageUnavailable), storage.open(key) as content:
        while content.read(10):
            pass


def test_an_error_of_the_server_is_tried_once_more(bucket: S3Settings, front: Front) -> None:
    storage = connect(bucket, endpoint=front.url)
    faults = [(503, _error("SlowDown"))]
    front.fault = lambda _: faults.pop() if faults else None
    assert read(storage, store(storage)) == TEXT
    assert not faults


def test_what_others_have_in_the_bucket_is_nobodys_file(
    seaweedfs: SeaweedFS, bucket: S3Settings, eventually: Callable[..., None]
) -> None:
    other = connect(bucket, prefix="of/turnmill/other/")
    store(other)
    store(connect(bucket, prefix=""))
    for name in ("notes.txt", f"{new_id().hex}.x", f"{new_id().hex}.{new_id().hex}.x"):
        seaweedfs.client.put_object(Bucket=bucket.bucket, Key=f"of/turnmill/{name}", Body=b"")
    storage = connect(bucket)
    key = store(storage)  # the youngest: when it is listed, the others would be
    eventually(lambda: key in storage.keys(0))
    assert list(storage.keys(0)) == [key]
    assert other.owned_since("me") is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "TURNMILL_S3__BUCKET"),
        ({"s3": {"bucket": "b-1"}, "files": {"max_bytes": 6 * 1024**3}}, "MAX_BYTES"),
        ({"s3": {"bucket": "b-1", "access_key": "x"}}, "secret_key"),
        ({"s3": {"bucket": "no/bucket"}}, "TURNMILL_S3__BUCKET"),
        ({"s3": {"bucket": "b-1", "prefix": "no-slash"}}, "TURNMILL_S3__PREFIX"),
        ({"s3": {"bucket": "b-1", "endpoint": "minio:9000"}}, "TURNMILL_S3__ENDPOINT"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], said: str) -> None:
    files = {"storage": "s3"} | settings.get("files", {})
    with pytest.raises(SettingsError, match=said):
        open_storage(load_settings(**settings | {"files": files}))


def test_threads_share_a_storage(bucket: S3Settings) -> None:
    storage = connect(bucket)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(read(storage, store(storage))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TEXT] * 8


def _name(bucket: S3Settings, key: Key) -> str:
    return f"{bucket.prefix}{key.file_id.hex}.{key.tenant_id.hex}"


def _error(code: str) -> bytes:
    assert re.fullmatch("[A-Za-z]+", code)
    return f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()

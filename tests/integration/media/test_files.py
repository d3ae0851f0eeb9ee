"""Files through OpenAI's own client: bytes in the storage, rows in Postgres, tenants apart."""

import hashlib
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import openai
import pytest

from tests.integration.media.conftest import MakeSite, Site
from turnmill.schemas.files.files import Purpose
from turnmill.schemas.files.local import LocalStorage
from turnmill.schemas.files.opening import open_files
from turnmill.schemas.files.storage import Key
from turnmill.schemas.ids import new_id

TEXT = b"Order 4711 has not arrived.\n"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
LARGE = os.urandom(3 * 1024 * 1024 + 17)


def test_what_is_uploaded_is_read_back_listed_and_deleted(site: Site) -> None:
    file = site.upload(LARGE, "photo.bin")
    assert (file.bytes, file.filename, file.purpose) == (len(LARGE), "photo.bin", "user_data")
    assert file.status == "processed"
    assert re.fullmatch(r"file_[0-9a-f]{32}", file.id)
    assert site.openai.files.retrieve(file.id).created_at == file.created_at
    assert site.openai.files.content(file.id).read() == LARGE
    assert [each.id for each in site.openai.files.list()] == [file.id]
    assert site.openai.files.delete(file.id).deleted
    assert site.stored() == []
    for look in (site.openai.files.retrieve, site.openai.files.content, site.openai.files.delete):
        with pytest.raises(openai.NotFoundError, match="POST /v1/files"):
            look(file.id)


def test_the_bytes_are_in_the_storage_and_nowhere_else(site: Site) -> None:
    secret = b"a canary that no table has"
    site.upload(secret)
    assert [path.read_bytes() for path in site.stored()] == [secret]
    row = site.database.run("SELECT * FROM files")[0]
    assert row.sha256 == hashlib.sha256(secret).digest()
    assert secret not in str(row).encode()


def test_pages_are_in_the_order_of_upload(site: Site) -> None:
    ids = [site.upload(TEXT, f"{number}.txt").id for number in range(5)]
    pages = site.openai.files.list(limit=2)
    assert len(pages.data) == 2
    assert [each.id for each in pages] == ids[::-1]
    assert [each.id for each in site.openai.files.list(limit=2, order="asc")] == ids


@pytest.mark.parametrize(
    ("content", "name", "mime"),
    [
        (TEXT, "evil.png", "text/plain"),
        ("订单没有到。".encode() * 700, "订单.txt", "text/plain"),
        (PNG, "harmless.txt", "image/png"),
        (b"%PDF-1.7\n", "a.txt", "application/pdf"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a", "audio/wav"),
        (b"MZ\x90\0\3\0", "setup.txt", "application/octet-stream"),
    ],
)
def test_a_file_is_what_it_begins_with_and_not_what_it_is_called(
    site: Site, content: bytes, name: str, mime: str
) -> None:
    file = site.upload(content, name)
    assert file.model_extra is not None and file.model_extra["mime_type"] == mime
    assert file.filename == name


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\boot.ini",
        "a/../../b",
        "..",
        "\x00\r\n\x1b[2J",
        "",
    ],
)
def test_no_name_leads_out_of_the_storage(site: Site, name: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="'
        + name.replace("\\", "\\\\").encode()
        + b'"\r\n\r\n'
        + TEXT
        + b"\r\n--b--\r\n"
    )
    with site.http as http:
        answer = http.post(
            "/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
    if answer.status_code == 400:  # headers of its own within the name
        assert site.stored() == []
        return
    shown = answer.json()["filename"]
    assert shown and shown.isprintable() and "/" not in shown and "\\" not in shown
    root = site.settings.files_dir
    assert all(path.resolve().is_relative_to(root.resolve()) for path in site.stored())
    assert len(site.stored()) == 1


def test_a_file_of_another_tenant_is_as_if_it_were_not_there(site: Site) -> None:
    file = site.upload(TEXT)
    stranger = site.client("stranger")
    for look in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError):
            look(file.id)
    assert list(stranger.files.list()) == []
    assert list(stranger.files.list(after=file.id)) == []
    assert site.openai.files.content(file.id).read() == TEXT


def test_the_content_is_downloaded_and_never_shown_by_a_browser(site: Site) -> None:
    file = site.upload(b"<script>alert(1)</script>", 'x"; evil=1.html')
    headers = site.openai.files.content(file.id).response.headers
    assert headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(make_site: MakeSite) -> None:
    site = make_site(files={"max_bytes": 2048})
    for size in (2049, 500_000):
        with pytest.raises(openai.APIStatusError, match="TURNMILL_FILES__MAX_BYTES") as refused:
            site.upload(bytes(size))
        assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")
    with site.http as http:

        def endless() -> Any:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(200):
                yield bytes(1024)

        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert http.post("/v1/files", content=endless(), headers=kind).status_code == 413
    assert site.stored() == []
    assert site.upload(bytes(2048)).bytes == 2048


def test_all_files_of_a_tenant_together_have_a_limit(make_site: MakeSite) -> None:
    site = make_site(files={"max_tenant_bytes": 10_000})
    first = site.upload(bytes(6000))
    with pytest.raises(openai.ConflictError, match="Delete some"):
        site.upload(bytes(6000))
    assert len(site.stored()) == 1
    site.client("other").files.create(file=("a", bytes(6000)), purpose="user_data")
    site.openai.files.delete(first.id)
    site.upload(bytes(6000))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch"}, "purpose"),
        ({"purpose": "message"}, "purpose"),
        ({"purpose": "user_data", "expires_after[seconds]": "10"}, "expires_after"),
        ({"purpose": "user_data", "expires_after[anchor]": "created_at"}, "expires_after"),
    ],
)
def test_a_wrong_field_is_named(site: Site, fields: dict[str, str], param: str) -> None:
    with site.http as http:
        answer = http.post("/v1/files", data=fields, files={"file": ("a", TEXT)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert site.stored() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing of a form",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut',
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--',
        b"--b\r\nX: " + bytes(9000),
        b"--b\r\n\r\n\r\n" * 40 + b"--b--",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n--b--',
    ],
)
def test_a_malformed_form_is_refused_and_leaves_nothing(site: Site, body: bytes) -> None:
    with site.http as http:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = http.post("/v1/files", content=body, headers=kind)
        assert answer.status_code == 400, answer.text
        answer = http.post("/v1/files", json={"file": "a"})
        assert answer.status_code == 400
    assert site.stored() == []


def test_what_has_expired_goes_with_its_bytes(site: Site) -> None:
    kept = site.upload(TEXT)
    gone = site.upload(TEXT, expires_after={"anchor": "created_at", "seconds": 3600})
    assert gone.expires_at == pytest.approx(datetime.now(UTC).timestamp() + 3600, abs=60)
    assert site.prune(is_dry=True)["files"] == 0
    site.database.run("UPDATE files SET expires_at = now() - interval '1 s' WHERE bytes > 0 "
                      "AND expires_at IS NOT NULL")  # fmt: skip
    assert site.prune(is_dry=True)["files"] == 1
    assert len(site.stored()) == 2
    assert site.prune()["files"] == 1
    assert [each.id for each in site.openai.files.list()] == [kept.id]
    assert len(site.stored()) == 1


def test_retention_bounds_the_life_of_files(make_site: MakeSite) -> None:
    site = make_site(retention={"files_days": 2})
    asked = {"anchor": "created_at", "seconds": 20 * 24 * 3600}
    for fields in ({}, {"expires_after": asked}):
        file = site.upload(TEXT, **fields)
        two_days = datetime.now(UTC) + timedelta(days=2)
        assert file.expires_at == pytest.approx(two_days.timestamp(), abs=60)


def test_rows_and_bytes_that_lost_each_other_are_deleted(site: Site) -> None:
    kept, lost = site.upload(TEXT), site.upload(PNG)
    [path] = [each for each in site.stored() if each.read_bytes() == PNG]
    young, orphan = (site.storage.path(Key(site.tenant_id, new_id())) for _ in range(2))
    stranger = path.with_name("a-file-of-somebody-else")
    for each in (young, orphan, stranger):
        each.parent.mkdir(exist_ok=True)
        each.write_bytes(b"bytes without a row")
    for each in (orphan, stranger):
        os.utime(each, (0, 0))
    path.unlink()
    site.made_later()
    site.prune()
    assert [each.id for each in site.openai.files.list()] == [kept.id]
    assert young.exists() and stranger.exists() and not orphan.exists()
    with pytest.raises(openai.NotFoundError):
        site.openai.files.retrieve(lost.id)


def test_bytes_that_get_their_row_during_a_sweep_are_kept(site: Site) -> None:
    """Of a page of bytes without rows, each is looked at again just before it is deleted."""
    ids = [new_id() for _ in range(2)]

    def save(file_id: UUID) -> None:
        with site.storage.draft() as draft:
            draft.write(TEXT)
            open_files(site.database, site.settings).save(
                draft,
                tenant_id=site.tenant_id,
                name="x",
                purpose=Purpose.MESSAGE,
                file_id=file_id,
            )

    class Storing(LocalStorage):
        def delete(self, key: Key) -> None:
            super().delete(key)
            save(*{*ids} - {key.file_id})

    for each in ids:
        path = site.storage.path(Key(site.tenant_id, each))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(TEXT)
        os.utime(path, (0, 0))
    save(new_id())  # claims the storage
    site.storage = Storing(site.settings.files_dir)
    site.prune()
    [row] = site.database.run("SELECT id FROM files WHERE id = ANY(%s)", (ids,))
    assert site.storage.has(Key(site.tenant_id, row.id))


def test_a_worker_that_sees_no_storage_takes_no_file_for_lost(site: Site) -> None:
    file = site.upload(TEXT)
    site.made_later()
    root = site.settings.files_dir
    root.rename(root.with_name("unmounted"))
    site.prune()
    root.with_name("unmounted").rename(root)
    assert site.openai.files.content(file.id).read() == TEXT


def test_a_storage_that_fails_is_our_fault_and_shows_no_path(site: Site) -> None:
    site.settings.files_dir.parent.mkdir(parents=True, exist_ok=True)
    site.settings.files_dir.write_text("a file in the place of the folder")
    with pytest.raises(openai.InternalServerError) as failed:
        site.upload(TEXT)
    assert failed.value.status_code == 503
    assert failed.value.code == "storage_unavailable"
    assert str(site.settings.files_dir) not in str(failed.value)

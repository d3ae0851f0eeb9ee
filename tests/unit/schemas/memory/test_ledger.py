"""The list of erasures outside the database is read whatever happened to its last line."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from turnmill.schemas.store.memory.erasures import Erasure, key_hash
from turnmill.schemas.store.memory.ledger import _append, _newest, read_ledger

TENANT = UUID(int=7)


def erasure(key: str, day: int = 1) -> Erasure:
    return Erasure(TENANT, key_hash(TENANT, key), datetime(2026, 1, day, tzinfo=UTC))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger"
    assert list(read_ledger(path)) == []
    first, second = [erasure("api:ada")], [erasure("api:bob"), erasure("api:ada", 2)]
    _append(path, first)
    _append(path, second)
    assert list(read_ledger(path)) == [*first, *second]
    assert path.stat().st_mode & 0o077 == 0
    assert "ada" not in path.read_text()


def test_a_torn_line_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    _append(path, [erasure("api:ada")])
    path.write_text(path.read_text() + '{"tenant_id": "0000')
    _append(path, [erasure("api:bob")])
    assert list(read_ledger(path)) == [erasure("api:ada"), erasure("api:bob")]


def test_of_a_user_forgotten_twice_the_last_time_counts() -> None:
    twice = [erasure("api:ada", 2), erasure("api:ada", 1), erasure("api:bob")]
    assert sorted(_newest(twice)) == sorted([erasure("api:ada", 2), erasure("api:bob")])

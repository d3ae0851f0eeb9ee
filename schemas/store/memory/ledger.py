"""The ledger: the list of erasures outside the database, which no restore takes back.

A backup that is older than an erasure brings back what was erased, and not the row that tells of
it. So each erasure is a line of a file too, as JSON: tenant, hash, time. Workers bring table and
file to the same content when they start, and then now and then.
"""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.memory.erasures import Erasure, add_erasures, list_erasures


class Merged(NamedTuple):
    """What was new to the database, and to the file."""

    to_database: int
    to_file: int


def merge_ledger(database: Database, path: Path) -> Merged:
    """Add to the table what the file has, and to the file what the table has.

    Several processes may do so at once: a line that is there twice counts once.

    Raises:
        OSError: the file cannot be read or written; the table has what was read.
        DatabaseUnavailable: nothing changed.
    """
    known = list(read_ledger(path))
    added = add_erasures(database, _newest(known))
    there = {_identity(each) for each in known}
    missing = [each for each in list_erasures(database) if _identity(each) not in there]
    if missing:
        _append(path, missing)
    return Merged(added, len(missing))


def read_ledger(path: Path) -> Iterator[Erasure]:
    """Yield the erasures of a ledger; none if there is no file. A torn line is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
            yield Erasure(
                UUID(entry["tenant_id"]),
                bytes.fromhex(entry["key_hash"]),
                datetime.fromisoformat(entry["at"]),
            )
        except (ValueError, KeyError, TypeError):
            continue


def _newest(erasures: list[Erasure]) -> list[Erasure]:
    """The last one of each user: a statement may not name a row twice."""
    newest: dict[tuple[UUID, bytes], Erasure] = {}
    for each in sorted(erasures, key=lambda erasure: erasure.at):
        newest[each.tenant_id, each.key_hash] = each
    return list(newest.values())


def _append(path: Path, erasures: list[Erasure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The line break before it ends a line that a dying process tore.
    text = "".join(f"\n{_line(each)}" for each in erasures) + "\n"
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(number, text.encode())
        os.fsync(number)
    finally:
        os.close(number)


def _line(erasure: Erasure) -> str:
    return json.dumps(
        {
            "tenant_id": str(erasure.tenant_id),
            "key_hash": erasure.key_hash.hex(),
            "at": erasure.at.isoformat(),
        }
    )


def _identity(erasure: Erasure) -> tuple[UUID, bytes, datetime]:
    return erasure.tenant_id, erasure.key_hash, erasure.at

"""Bring a collection to what a folder or a file holds now.

Documents are queued here, and workers index them: `schemas/store/knowledge/indexing.py`.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.knowledge.lookup import Progress, list_progress
from turnmill.schemas.citations.addresses import check_base, joined_address
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import Id, fetch
from turnmill.schemas.safety.invisible import visible
from turnmill.schemas.store.knowledge import passages
from turnmill.schemas.store.knowledge.formats import MAX_BYTES, SUFFIXES, format_of
from turnmill.schemas.store.knowledge.indexing import DocumentState, Wanted, queue, write
from turnmill.schemas.store.knowledge.lexemes import passage_terms

MAX_NAME_CHARS = 100

#: The origin of answers to gaps: no folder has this name.
ANSWERS = "answers"

#: Part of each digest: when readers change, the same content makes other passages.
READERS_VERSION = b"2"

#: How often progress is asked for, seconds.
POLL_S = 0.2

_COLLECTION = """
INSERT INTO collections (id, tenant_id, name) VALUES (%s, %s, %s)
ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name RETURNING id
"""

_KNOWN = "SELECT id, uri, digest, state FROM documents WHERE collection_id = %s AND origin = %s"

_OF_URIS = "SELECT id FROM documents WHERE collection_id = %s AND uri = ANY(%s)"


class Change(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    DELETED = "deleted"
    #: What is known of it stays.
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one document."""

    uri: str
    change: Change
    passage_count: int = 0
    #: Why it cannot be read.
    reason: str = ""
    #: It is queued, and indexed later.
    document_id: UUID | None = None


class _Known(NamedTuple):
    id: UUID
    uri: str
    digest: bytes
    state: str


def sync(
    database: Database, tenant_id: UUID, collection: str, source: Path, base_url: str | None = None
) -> Iterator[Synced]:
    """Queue what is new or changed in this source, document by document, and what failed before;
    say what became of each. What is gone from the source is deleted at the end.

    People find a document below `base_url`, by its path, unless it names its address itself.

    Raises:
        InvalidInput: there is no such source, the collection's name is too long, or `base_url` is
            no address of http or https.
    """
    base = check_base(base_url) if base_url else None
    if not 1 <= len(collection) <= MAX_NAME_CHARS:
        raise InvalidInput(f"A collection's name has 1 to {MAX_NAME_CHARS} characters.")
    files = list(find_files(source))
    origin = str(source.resolve())
    with database.cursor() as cursor:
        (row,) = fetch(cursor, Id, _COLLECTION, (new_id(), tenant_id, collection))
    collection_id = row.id
    rows = database.fetch(_Known, _KNOWN, (collection_id, origin))
    known = {row.uri: row for row in rows}
    for uri, path in files:
        url = joined_address(base, uri) if base else None
        wanted = Wanted(collection_id, origin, uri, digest=b"", url=url)
        try:
            yield _queue_file(database, wanted, path, known.get(uri))
        except InvalidInput as error:
            yield Synced(uri, Change.UNREADABLE, reason=error.message)
    gone = sorted(known.keys() - {uri for uri, _ in files})
    with database.cursor() as cursor:
        passages.delete_documents(cursor, collection_id, [known[uri].id for uri in gone])
    yield from (Synced(uri, Change.DELETED) for uri in gone)


def follow(database: Database, synced: Sequence[Synced]) -> Iterator[Synced | None]:
    """Wait until workers have indexed these documents. Yield each once it is ready or has failed,
    or is gone, and None each time there is nothing new.
    """
    waiting = {each.document_id: each for each in synced if each.document_id}
    while waiting:
        found = {each.document_id: each for each in list_progress(database, list(waiting))}
        ended = {id_ for id_ in waiting if id_ not in found or found[id_].has_ended}
        for document_id in ended:
            yield _ended(waiting.pop(document_id), found.get(document_id))
        if not ended:
            yield None
            time.sleep(POLL_S)


def delete_documents(database: Database, collection_id: UUID, uris: list[str]) -> int:
    """Delete documents with their passages, whatever their origin; return how many there were."""
    with database.cursor() as cursor:
        found = [row.id for row in fetch(cursor, Id, _OF_URIS, (collection_id, uris))]
        return passages.delete_documents(cursor, collection_id, found)


def save_answer(
    database: Database, collection_id: UUID, uri: str, question: str, text: str
) -> UUID:
    """Write a question with its answer as a document of its own; return the document. It belongs
    to no folder, so no `sync` deletes it.
    """
    heading, content = visible(question), visible(text)
    digest = hashlib.sha256(f"{heading}\n{content}".encode()).digest()
    terms, length = passage_terms("", heading, content)
    passage = {"heading": heading, "content": content, "terms": terms, "length": length}
    with database.cursor() as cursor:
        return write(cursor, Wanted(collection_id, ANSWERS, uri, digest), "", [passage])


def find_files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of the source, or of all files in and below it that a reader takes.

    Raises:
        InvalidInput: there is no such source.
    """
    if source.is_file():
        yield source.name, source
        return
    if not source.is_dir():
        raise InvalidInput(f"There is no file or folder {source}.")
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        is_hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if format_of(path.name) and path.is_file() and not is_hidden:
            yield name, path


def _queue_file(database: Database, wanted: Wanted, path: Path, known: _Known | None) -> Synced:
    content = _content_of(path)
    address = f"\n{wanted.url}".encode() if wanted.url else b""
    digest = digest_of(hashlib.sha256(content + address).digest())
    if known and digest == bytes(known.digest) and known.state != DocumentState.FAILED:
        # It may be queued still, by another command.
        return Synced(wanted.uri, Change.UNCHANGED, document_id=known.id)
    with database.cursor() as cursor:
        document_id = queue(cursor, wanted._replace(digest=digest), content)
    change = Change.CHANGED if known else Change.ADDED
    return Synced(wanted.uri, change, document_id=document_id)


def digest_of(content_digest: bytes) -> bytes:
    """What tells whether a document has to be read again, by the SHA-256 of its content."""
    return hashlib.sha256(READERS_VERSION + content_digest).digest()


def _content_of(path: Path) -> bytes:
    if format_of(path.name) is None:
        raise InvalidInput(
            f"There is no reader for '{path.suffix}'. There are readers for {', '.join(SUFFIXES)}."
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"It is larger than {MAX_BYTES >> 20} MiB: split it.")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"It cannot be opened: {error.strerror}.") from error


def _ended(synced: Synced, now: Progress | None) -> Synced:
    if now is None:
        return replace(synced, change=Change.DELETED)
    if now.state == DocumentState.FAILED:
        return replace(synced, change=Change.UNREADABLE, reason=now.error_message or "")
    return replace(synced, passage_count=now.passage_count)

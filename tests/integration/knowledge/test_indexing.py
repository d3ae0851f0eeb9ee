"""Documents become ready exactly once, whatever dies; readers see old passages or new ones."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from tests.integration.knowledge import ending
from tests.integration.knowledge.conftest import Library
from tests.integration.knowledge.test_collections import RETURNS, counted
from tests.unit.workers.readers.files import ENCRYPTED, paragraph, pdf, word
from turnmill.producer.cli.knowledge.waiting import waited
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.knowledge.lookup import find_collection, list_documents
from turnmill.producer.knowledge.sync import Change, delete_documents, follow
from turnmill.schemas.errors import PermanentError
from turnmill.schemas.store.knowledge import passages as storing
from turnmill.schemas.store.knowledge.indexing import claim, retry, settle
from turnmill.workers.readers.reading import forget_leftovers
from turnmill.workers.testing import InlineWorker
from turnmill.workers.upkeep import indexer
from turnmill.workers.upkeep.indexer import index_next
from turnmill.workers.upkeep.isolated import Resting

Eventually = Callable[..., None]


def states(library: Library, name: str = "shop") -> dict[str, str]:
    found = find_collection(library.database, library.tenant_id, name)
    return {each.uri: each.state for each in list_documents(library.database, found.collection_id)}


def assert_counts(library: Library) -> None:
    row: Any = counted(library)
    assert (row.passage_count, row.total_length) == (row.passages, row.length)
    assert row.terms == row.counted


@pytest.mark.parametrize("step", ending.STEPS)
def test_a_worker_may_be_killed_at_any_step(
    library: Library, step: str, database_url: str, eventually: Eventually
) -> None:
    library.write("returns.md", RETURNS)
    library.sync()
    library.write("returns.md", RETURNS.replace("30 days", "60 days"))
    library.queue()
    command = [sys.executable, ending.__file__, database_url, str(library.settings.data), step]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        if step != "settled":
            assert "30 days" in library.search("leaking kettle")[0].content
        process.send_signal(signal.SIGKILL)
    eventually(lambda: library.index() or states(library) == {"returns.md": "ready"})
    assert ["60 days" in each.content for each in library.search("leaking kettle")] == [True]
    [row] = library.database.run("SELECT version FROM documents")
    assert row.version == 2
    assert library.database.run("SELECT FROM document_contents") == []
    assert_counts(library)


def test_a_paused_worker_changes_nothing_any_more(library: Library) -> None:
    library.write("returns.md", RETURNS)
    library.queue()
    paused = claim(library.database, lease_s=60.0)
    assert paused is not None
    library.write("returns.md", RETURNS.replace("30 days", "60 days"))
    library.sync()
    stale = {"heading": "", "content": "stale", "terms": "'stale':1", "length": 1}
    assert not settle(library.database, paused, "Stale", [stale])
    assert library.search("stale") == []
    assert "60 days" in library.search("leaking kettle")[0].content
    assert_counts(library)


def test_a_document_that_is_deleted_while_it_is_read_stays_deleted(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write("returns.md", RETURNS)
    real = indexer.read_isolated

    def delete_meanwhile(name: str, content: bytes) -> Any:
        found = find_collection(library.database, library.tenant_id, "shop")
        assert delete_documents(library.database, found.collection_id, ["returns.md"]) == 1
        return real(name, content)

    monkeypatch.setattr(indexer, "read_isolated", delete_meanwhile)
    assert [each.change for each in library.sync().values()] == [Change.DELETED]
    for table in ("documents", "document_contents", "passages", "collection_terms"):
        assert library.database.run(f"SELECT FROM {table}") == [], table
    assert_counts(library)


def test_a_document_of_many_passages_is_saved_in_several_statements(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "SAVED_AT_ONCE", 3)
    parts = [f"## Part {part}\n\nKettle {part}." for part in range(8)]
    library.write("kettles.md", "# Kettles\n\n" + "\n\n".join(parts))
    library.sync()
    rows = library.database.run("SELECT position, content FROM passages ORDER BY position")
    assert [row.position for row in rows] == list(range(8))
    assert [row.content for row in rows] == [f"Kettle {part}." for part in range(8)]
    assert_counts(library)


def test_no_search_mixes_versions_while_documents_change(library: Library) -> None:
    def write(version: int) -> None:
        lines = (f"## Part {part}\n\nKettle {part} edition{version}." for part in range(20))
        library.write("kettles.md", "# Kettles\n\n" + "\n\n".join(lines))

    write(0)
    library.sync()
    seen: list[set[str]] = []
    done = threading.Event()

    def searching() -> None:
        while not done.is_set():
            found = library.search("kettle", limit=50)
            seen.append({each.content.rsplit(" ", 1)[1] for each in found} | {str(len(found))})

    threads = [threading.Thread(target=searching) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(1, 6):
        write(version)
        library.sync()
    done.set()
    for thread in threads:
        thread.join()
    assert all(len(each) == 2 and "20" in each for each in seen)
    assert len({frozenset(each) for each in seen}) > 1
    assert_counts(library)


def test_what_cannot_be_read_is_said_and_the_others_are_indexed(library: Library) -> None:
    library.write("returns.md", RETURNS)
    for name, content in {
        "manual.pdf": pdf(["Kettles boil water."]),
        "secret.pdf": pdf(["Kettle"], encrypt=ENCRYPTED),
        "letter.docx": word(paragraph("A letter about lids.")),
        "wrong.docx": pdf(["Kettle"]),
    }.items():
        (library.folder / name).write_bytes(content)
    found = library.sync()
    assert {uri for uri, each in found.items() if each.change is Change.UNREADABLE} == {
        "secret.pdf",
        "wrong.docx",
    }
    assert "encrypted" in found["secret.pdf"].reason
    assert [each.heading for each in library.search("boil water")] == ["page 1"]
    assert library.search("letter about lids")[0].uri == "letter.docx"
    collection = find_collection(library.database, library.tenant_id, "shop")
    shown = {
        each.uri: (each.state, each.error_message)
        for each in list_documents(library.database, collection.collection_id)
    }
    assert shown["letter.docx"] == ("ready", None)
    assert shown["wrong.docx"][0] == "failed"
    assert "content is a PDF" in str(shown["wrong.docx"][1])


def test_what_failed_is_read_again_when_somebody_asks_and_by_the_next_sync(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write("returns.md", RETURNS)
    library.write("other.md", "Lamps are for sale.")
    real = indexer.read_isolated

    def missing(name: str, content: bytes) -> Any:
        raise indexer.SettingsError("A library is not installed.")

    monkeypatch.setattr(indexer, "read_isolated", missing)
    assert {each.change for each in library.sync().values()} == {Change.UNREADABLE}
    assert set(states(library).values()) == {"failed"}
    monkeypatch.setattr(indexer, "read_isolated", real)
    collection = find_collection(library.database, library.tenant_id, "shop").collection_id
    assert [row.uri for row in retry(library.database, collection, ["returns.md"])] == [
        "returns.md"
    ]
    library.index()
    assert states(library) == {"returns.md": "ready", "other.md": "failed"}
    assert library.sync()["other.md"].passage_count == 1
    assert retry(library.database, collection, None) == []


def test_a_document_whose_reader_dies_fails_after_three_attempts(
    library: Library, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    attempts = []

    def dying(name: str, content: bytes) -> Any:
        attempts.append(name)
        raise PermanentError("A process that computed a result ended with status -11.")

    monkeypatch.setattr(indexer, "read_isolated", dying)
    monkeypatch.setattr(indexer, "RETRY_S", 0.0)
    library.write("returns.md", RETURNS)
    found = library.sync()["returns.md"]
    assert attempts == ["returns.md"] * 3
    assert (found.change, found.reason) == (
        Change.UNREADABLE,
        "The process that read it died each time.",
    )


def test_a_document_that_ends_its_workers_fails_in_the_end(library: Library) -> None:
    library.write("returns.md", RETURNS)
    [queued] = library.queue()
    for _ in range(3):
        assert claim(library.database, lease_s=0.0)
    library.index()
    [ended] = [each for each in follow(library.database, [queued]) if each]
    assert "3 times" in ended.reason


def test_a_document_that_postgres_refuses_to_change_holds_up_no_other(library: Library) -> None:
    """Nor does it keep its place: it is looked at again after a while."""
    for name in ("refused", "returns", "shipping"):
        library.write(f"{name}.md", RETURNS)
    library.queue()
    library.database.run(
        "UPDATE documents SET due_at = due_at - interval '1 minute' WHERE uri = 'refused.md'"
    )
    library.database.run(
        "ALTER TABLE documents ADD CONSTRAINT refuses "
        "CHECK (uri <> 'refused.md' OR state = 'queued') NOT VALID"
    )
    resting = Resting()
    index = partial(index_next, library.database, library.files, 15.0, resting=resting)
    with structlog.testing.capture_logs() as logs:
        indexed = [index() for _ in range(3)]
    assert [task and task.uri for task in indexed] == ["returns.md", "shipping.md", None]
    (told,) = [each for each in logs if each["event"] == "document.sweep_failed"]
    assert resting.ids == [UUID(told["document_id"])]
    library.database.run("ALTER TABLE documents DROP CONSTRAINT refuses")
    assert index() is None
    resting.update(dict.fromkeys(resting, 0.0))
    assert index()
    assert states(library)["refused.md"] == "ready"


def test_workers_read_documents(
    library: Library, database_url: str, make_system: Callable[..., Any]
) -> None:
    system = make_system(database_url, "amqp://nobody", rescue_every_s=60.0)
    library.write("returns.md", RETURNS)
    with InlineWorker(system.settings):
        ended = [each for each in follow(library.database, library.queue()) if each]
    assert [(each.uri, each.passage_count) for each in ended] == [("returns.md", 2)]


def test_who_waits_for_documents_without_a_worker_is_told_what_to_start(
    library: Library, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write("returns.md", RETURNS)
    monkeypatch.setattr("turnmill.producer.cli.knowledge.waiting._QUIET_S", 0.1)
    waiting = waited(make_console(), library.database, library.queue())
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.extend(waiting))
    thread.start()
    said = ""
    while "No worker runs" not in said:
        said += capsys.readouterr().out
        thread.join(0.05)
    library.index()
    thread.join()
    assert "turnmill worker" in said
    assert [each.uri for each in ended] == ["returns.md"]


def test_what_was_left_on_the_disk_by_a_killed_worker_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("old", "new"):
        (tmp_path / f"turnmill-document-{name}").mkdir()
    os.utime(tmp_path / "turnmill-document-old", (0, 0))
    forget_leftovers()
    assert [path.name for path in tmp_path.iterdir()] == ["turnmill-document-new"]

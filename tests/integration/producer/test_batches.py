"""Batches against a real PostgreSQL: submitted once, resumed, watched, written out."""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner

from turnmill.producer.accept import accept_in
from turnmill.producer.batches import submission as batches
from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.lookup import find_batch, list_batches
from turnmill.producer.batches.progress import progress, summarize
from turnmill.producer.batches.results import results, write_results
from turnmill.producer.batches.submission import submit
from turnmill.producer.cli.batch import app
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.batches import BatchResult
from turnmill.schemas.errors import DatabaseUnavailable, InvalidInput, NotFound, UnknownBot
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.records.columns import Columns
from turnmill.schemas.settings import DatabaseSettings, EngineSettings, Settings
from turnmill.schemas.store.tables import turns
from turnmill.schemas.turns import AcceptedTurn, GenerationParams, TurnRequest, TurnState
from turnmill.workers.testing import InlineWorker

BOT = "echo"


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    engine = EngineSettings(name="echo", served_name=BOT)
    database = DatabaseSettings(url=database_url)
    return Settings(data=tmp_path, database=database, engine=engine)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    yield database
    database.close()


@pytest.fixture
def tenant_id(database: Database, settings: Settings) -> UUID:
    return ensure_defaults(database, settings)


@pytest.fixture
def backlog(tmp_path: Path) -> Backlog:
    """Ten conversations of three turns in reverse, and ten single rows."""
    path = tmp_path / "tickets.jsonl"
    rows = [
        {"id": f"{c}-{t}", "conversation": str(c), "turn": t, "prompt": f"用户 {c} 第 {t}"}
        for t in (3, 2, 1)
        for c in range(10)
    ]
    rows += [{"prompt": f"single {n}", "max_tokens": 7} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_backlog(path)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_ROWS", 7)


def stored_turns(database: Database) -> int:
    with database.begin() as connection:
        return len(connection.execute(turns.select()).all())


@pytest.mark.usefixtures("small_chunks")
def test_turns_of_a_conversation_are_accepted_in_order(
    database: Database, tenant_id: UUID, backlog: Backlog
) -> None:
    counts: list[int] = []
    batch = submit(database, tenant_id, BOT, backlog, on_accepted=counts.append)
    rows = list(results(database, tenant_id, batch.batch_id))
    assert counts == [7, 14, 21, 28, 35, 40]
    assert [row.row for row in rows] == list(range(1, 41))
    assert [row.id for row in rows[28:32]] == ["8-1", "9-1", "31", "32"]
    assert all(row.seq == int(row.id[-1]) for row in rows[:30])
    assert rows[0].question == "用户 0 第 3"
    conversations = [len(list(g)) for _, g in groupby(sorted(r.conversation_id for r in rows))]
    assert sorted(conversations) == [1] * 10 + [3] * 10


@pytest.mark.usefixtures("small_chunks")
def test_same_file_is_the_same_batch(
    database: Database, tenant_id: UUID, backlog: Backlog, tmp_path: Path
) -> None:
    first = submit(database, tenant_id, BOT, backlog)
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_bytes(backlog.path.read_bytes())
    assert submit(database, tenant_id, BOT, read_backlog(renamed)) == first
    assert stored_turns(database) == 40


@pytest.mark.usefixtures("small_chunks")
def test_interrupted_submission_goes_on_where_it_stopped(
    database: Database, tenant_id: UUID, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def dies_at_the_third(cursor: Cursor, requests: list[TurnRequest]) -> list[AcceptedTurn]:
        sent.append(len(requests))
        if len(sent) == 3:
            raise DatabaseUnavailable
        return accept_in(cursor, requests)

    monkeypatch.setattr(batches, "accept_in", dies_at_the_third)
    with pytest.raises(DatabaseUnavailable):
        submit(database, tenant_id, BOT, backlog)
    assert stored_turns(database) == 14
    batch = submit(database, tenant_id, BOT, backlog)
    assert sent == [7, 7, 7, 7, 7, 7, 5]
    assert len(list(results(database, tenant_id, batch.batch_id))) == 40


def test_other_parameters_or_another_name_make_another_batch(
    database: Database, tenant_id: UUID, backlog: Backlog
) -> None:
    plain = submit(database, tenant_id, BOT, backlog)
    shorter = submit(database, tenant_id, BOT, backlog, GenerationParams(max_tokens=5))
    named = submit(database, tenant_id, BOT, backlog, name="second run")
    again = submit(database, tenant_id, BOT, backlog, name="second run")
    assert len({plain.batch_id, shorter.batch_id, named.batch_id}) == 3
    assert again == named
    assert (plain.name, named.name) == ("tickets.jsonl", "second run")
    assert [b.batch_id for b in list_batches(database, tenant_id)] == [
        named.batch_id, shorter.batch_id, plain.batch_id,
    ]  # fmt: skip
    with database.begin() as connection:
        rows = connection.execute(turns.select().where(turns.c.batch_id == shorter.batch_id))
        assert {row.params["max_tokens"] for row in rows} == {5}


def test_unknown_bot_leaves_no_batch(database: Database, tenant_id: UUID, backlog: Backlog) -> None:
    with pytest.raises(UnknownBot, match="no bot or model 'nobody'"):
        submit(database, tenant_id, "nobody", backlog)
    assert list_batches(database, tenant_id) == []


def test_batch_is_found_by_the_start_of_its_id(
    database: Database, tenant_id: UUID, backlog: Backlog
) -> None:
    batch = submit(database, tenant_id, BOT, backlog)
    shown = show_id(Prefix.BATCH, batch.batch_id)
    for text in (shown, shown[:14], str(batch.batch_id), batch.batch_id.hex[:8].upper()):
        assert find_batch(database, tenant_id, text) == batch
    with pytest.raises(NotFound):
        find_batch(database, tenant_id, "batch_ffff")
    with pytest.raises(NotFound):
        find_batch(database, new_id(), shown)
    for text in ("", "batch_", "abc", "tickets", "batch_" + "0" * 33):
        with pytest.raises(InvalidInput, match="is not the start of a batch's id"):
            find_batch(database, tenant_id, text)
    submit(database, tenant_id, BOT, backlog, name="other")
    with pytest.raises(InvalidInput, match="Several batches start with"):
        find_batch(database, tenant_id, batch.batch_id.hex[:5])


def test_progress_before_any_answer(database: Database, tenant_id: UUID, backlog: Backlog) -> None:
    batch = submit(database, tenant_id, BOT, backlog)
    before = progress(database, tenant_id, batch.batch_id)
    assert before.states == {TurnState.QUEUED: 20, TurnState.WAITING: 20}
    assert (before.total, before.accepted, before.settled, before.attempts) == (40, 40, 0, 0)
    assert not before.is_done
    assert before.latency_p50_s is None
    with pytest.raises(NotFound):
        progress(database, tenant_id, new_id())


def test_another_tenant_s_batch_does_not_exist(
    database: Database, tenant_id: UUID, backlog: Backlog
) -> None:
    batch = submit(database, tenant_id, BOT, backlog)
    with pytest.raises(NotFound):
        progress(database, new_id(), batch.batch_id)
    assert list(results(database, new_id(), batch.batch_id)) == []
    assert len(list(results(database, tenant_id, batch.batch_id))) == 40


def test_batch_is_answered_and_written(
    database: Database, tenant_id: UUID, backlog: Backlog, settings: Settings, tmp_path: Path,
    eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    batch = submit(database, tenant_id, BOT, backlog)
    with InlineWorker(settings):
        eventually(lambda: progress(database, tenant_id, batch.batch_id).is_done)
    end = summarize(database, tenant_id, batch.batch_id)
    assert (end.completed, end.failed, end.settled) == (40, 0, 40)
    assert end.attempts == 40
    assert end.completion_tokens > 0 and end.prompt_tokens > 0
    assert end.latency_p50_s and end.latency_p95_s and end.latency_p50_s <= end.latency_p95_s
    assert end.answer_p50_s and end.answer_p50_s <= end.latency_p50_s
    assert end.wall_s and end.wall_s > 0
    assert (end.sampled_count, end.cut_count) == (40, 0)
    database.run("UPDATE replies SET finish_reason = 'length' WHERE content LIKE '%1%'")
    cut = summarize(database, tenant_id, batch.batch_id).cut_count
    assert cut == sum(r.finish_reason == "length" for r in results(
        database, tenant_id, batch.batch_id)) > 0  # fmt: skip
    database.run("UPDATE replies SET finish_reason = 'stop'")

    monkeypatch.setattr("turnmill.producer.batches.results.PAGE_ROWS", 7)
    rows = list(results(database, tenant_id, batch.batch_id))
    assert len(rows) == 40 and all(row.reply and row.latency_s for row in rows)
    assert [row.row for row in results(database, tenant_id, batch.batch_id, limit=9)] == list(
        range(1, 10)
    )
    assert_written(tmp_path, rows)


def assert_written(folder: Path, rows: list[BatchResult]) -> None:
    rows = [rows[0].model_copy(update={"reply": "one\u2028two\x85three"}), *rows[1:]]
    expected = [row.model_dump(mode="json") for row in rows]
    assert write_results(folder / "new" / "r.jsonl", rows) == 40
    lines = (folder / "new" / "r.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected

    write_results(folder / "r.csv", rows)
    with (folder / "r.csv").open(newline="", encoding="utf-8-sig") as file:
        cells = list(csv.DictReader(file))
    assert [(c["id"], c["reply"], c["error"]) for c in cells] == [
        (row.id, row.reply, "") for row in rows
    ]

    parquet = pytest.importorskip("pyarrow.parquet")
    write_results(folder / "r.parquet", rows)
    assert parquet.read_table(folder / "r.parquet").to_pylist() == expected


def test_results_stand_beside_the_rows_of_the_file_that_is_given(
    database: Database, tenant_id: UUID, database_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    export = tmp_path / "export.csv"
    export.write_text("Nr;Frage;Kunde\n7;Wo ist es?;Müller\n8;Und das?;Weiß\n")
    columns = Columns(id="Nr", prompt="Frage")
    batch = submit(database, tenant_id, BOT, read_backlog(export, columns=columns))
    asked = ["results", batch.batch_id.hex, "--file", str(export), "--id", "Nr"]
    target = tmp_path / "answers.csv"
    done = CliRunner().invoke(app, [*asked, "--prompt", "Frage", "-o", str(target)])
    assert done.exit_code == 0, done.output
    with target.open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file, delimiter=";")) == [
            ["Nr", "Frage", "Kunde", "reply", "state", "error"],
            ["7", "Wo ist es?", "Müller", "", "queued", ""],
            ["8", "Und das?", "Weiß", "", "queued", ""],
        ]
    other = tmp_path / "other.csv"
    other.write_text("Nr;Frage;Kunde\n9;Wo ist es?;Müller\n8;Und das?;Weiß\n")
    with pytest.raises(
        InvalidInput, match=r"'other\.csv' is not the backlog of this batch, or .*same --id"
    ):
        rows = results(database, tenant_id, batch.batch_id)
        write_results(tmp_path / "no.csv", rows, read_backlog(other, columns=columns))
    assert not (tmp_path / "no.csv").exists()


def test_failing_writer_leaves_the_old_results(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("old")

    def broken() -> Iterator[BatchResult]:
        raise DatabaseUnavailable
        yield

    with pytest.raises(DatabaseUnavailable):
        write_results(path, broken(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]
    assert path.read_text() == "old"
    with pytest.raises(InvalidInput, match=r"Known are \.jsonl"):
        write_results(tmp_path / "r.txt", [])
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"):
        write_results(tmp_path / "file" / "r.csv", [])

"""`turnmill batch run`, interrupted and killed at its two halves: while it submits and while it
watches. Run again, it goes on; no row is accepted, answered or written twice.
"""

import functools
import json
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.exports import (
    TITLES,
    csv_rows,
    help_desk_csv,
    help_desk_row,
    help_desk_xlsx,
    xlsx_rows,
)
from turnmill.producer.batches.submission import CHUNK_ROWS

Eventually = Callable[..., None]
SendsSignal = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])

INTERRUPTED, USAGE = 130, 64

#: With these, a submission takes two transactions.
ROWS_BEFORE_GATE, ROWS = CHUNK_ROWS, CHUNK_ROWS + 100

ROWS_OF_EXPORT = 300
EXPORT = range(1, ROWS_OF_EXPORT + 1)

#: An advisory lock that rows behind the gate wait for: it stops a submission between two rows.
GATE = 20_260_101
INSTALL_GATE = f"""
CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NEW; END $$;
CREATE TRIGGER gate BEFORE INSERT ON turns FOR EACH ROW
  WHEN (NEW.batch_row > {ROWS_BEFORE_GATE}) EXECUTE FUNCTION pass_gate();
"""
WAITS_AT_GATE = f"""
SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = {GATE} AND NOT granted
"""


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    """The echo engine, a relay and a worker."""
    system = make_system(database_url, valkey_url)
    system.start("relay")
    system.start_worker()
    return system


@pytest.fixture
def backlog(tmp_path: Path) -> Path:
    return tmp_path / "tickets.jsonl"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_again(system: Any, backlog: Path, results: Path) -> None:
    again = system.start("batch", "run", str(backlog), "-o", str(results), "--overwrite")
    assert again.wait(60) == 0, again.log.read_text()


def command_named(said: str) -> list[str]:
    """The command that an interrupted run advises, as a shell would read it."""
    return shlex.split(said[said.index("turnmill batch") :])[1:]


def assert_each_row_ran_once(system: Any, backlog: Path, results: Path) -> None:
    rows, answers = read_rows(backlog), read_rows(results)
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
    assert [answer["row"] for answer in answers] == list(range(1, len(rows) + 1))
    assert {(answer["state"], answer["attempts"]) for answer in answers} == {("completed", 1)}
    assert [answer["reply"] for answer in answers] == [row["id"] for row in rows]
    for table in ("turns", "attempts", "replies"):
        assert system.database.run(f"SELECT count(*) AS n FROM {table}")[0].n == len(rows)
    assert system.database.run("SELECT count(*) AS n FROM batches")[0].n == 1


@contextmanager
def closed_gate(database_url: str) -> Iterator[None]:
    """Submissions stop at the first row behind the gate until this ends."""
    with psycopg.connect(database_url, autocommit=True) as link:
        link.execute(INSTALL_GATE)
        link.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        yield


@SendsSignal
def test_a_submission_that_was_cut_off_goes_on_with_the_missing_rows(
    system: Any, backlog: Path, results: Path, number: signal.Signals, eventually: Eventually
) -> None:
    write_rows(backlog, [{"id": f"r{n}", "prompt": f"r{n}"} for n in range(1, ROWS + 1)])
    with closed_gate(system.settings.database.url.get_secret_value()):
        first = system.start("batch", "run", str(backlog), "-o", str(results))
        eventually(lambda: system.database.run(WAITS_AT_GATE) or not first.is_running)
        assert first.is_running, first.log.read_text()
        first.send(number)
        status = first.wait(30)
        assert system.count("true") == ROWS_BEFORE_GATE
    assert not results.exists()
    if number is signal.SIGINT:
        assert status == INTERRUPTED
        assert "Run the same again" in first.log.read_text()
    run_again(system, backlog, results)
    assert_each_row_ran_once(system, backlog, results)


@SendsSignal
def test_a_run_that_was_cut_off_while_watching_ends_with_all_results(
    system: Any, backlog: Path, results: Path, number: signal.Signals, eventually: Eventually
) -> None:
    rows = [{"id": f"r{n}", "prompt": f"[[wait=0.5]] r{n}"} for n in range(1, 101)]
    write_rows(backlog, rows)
    first = system.start("batch", "run", str(backlog), "-o", str(results))
    eventually(lambda: system.count("state = 'completed'") >= 10 or not first.is_running)
    first.send(number)
    status = first.wait(30)
    assert system.count("state = 'completed'") < len(rows)
    assert not results.exists()
    if number is signal.SIGINT:
        assert status == INTERRUPTED
        assert "nothing is lost" in first.log.read_text()
        following = system.start(*command_named(first.log.read_text()))
        assert following.wait(60) == 0, following.log.read_text()
        assert len(read_rows(results)) == len(rows)
    run_again(system, backlog, results)
    assert_each_row_ran_once(system, backlog, results)


def has_answered(system: Any, run: Any, count: int) -> bool:
    return system.count("state = 'completed'") >= count or not run.is_running


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_export_of_a_help_desk_that_was_killed_twice_keeps_its_columns_and_gains_three(
    system: Any, tmp_path: Path, suffix: str, eventually: Eventually
) -> None:
    path = tmp_path / f"export.{suffix}"
    (help_desk_csv if suffix == "csv" else help_desk_xlsx)(path)
    prompt = ("--template", r"[[wait=0.1]] {Betreff}\n{Beschreibung}")
    command = ("batch", "run", str(path), "--id", "Ticket", *prompt)
    for answered in (50, 150):
        run = system.start(*command)
        eventually(functools.partial(has_answered, system, run, answered))
        run.send(signal.SIGKILL)
        run.wait(30)
        assert system.count("state = 'completed'") < ROWS_OF_EXPORT
    assert system.start(*command).wait(60) == 0

    output = tmp_path / f"export-results.{suffix}"
    if suffix == "csv":
        (head, *rows), given = csv_rows(output, ";"), [TITLES, *map(help_desk_row, EXPORT)]
    else:
        (head, *rows), given = xlsx_rows(output), xlsx_rows(path)
    assert [head[0].lstrip("\ufeff"), *head[1:]] == [
        *given[0], "question", "reply", "state", "error",
    ]  # fmt: skip
    assert [row[: len(TITLES)] for row in rows] == given[1:]
    for row in rows:
        question, reply, state, error = row[len(TITLES) :]
        assert question == f"[[wait=0.1]] {row[5]}\n{row[6]}"
        assert (reply, state, error or "") == (f"{row[5]}\n{row[6]}", "completed", "")
    for table in ("turns", "attempts", "replies"):
        assert system.database.run(f"SELECT count(*) AS n FROM {table}")[0].n == ROWS_OF_EXPORT


def test_a_batch_answered_while_nobody_watched_only_has_its_results_written(
    system: Any, backlog: Path, results: Path
) -> None:
    write_rows(backlog, [{"id": f"r{n}", "prompt": f"r{n}"} for n in range(1, 21)])
    run_again(system, backlog, results)
    results.unlink()
    run_again(system, backlog, results)
    assert_each_row_ran_once(system, backlog, results)


def test_a_row_that_cannot_be_answered_is_reported_and_does_not_stop_the_others(
    system: Any, backlog: Path, results: Path
) -> None:
    talk = {"conversation": "talk"}
    rows = [
        {"id": "good", "prompt": "good"},
        {"id": "bad", "prompt": "[[fail]] bad"},
        {"id": "talk-1", **talk, "turn": 1, "prompt": "[[fail]] one"},
        {"id": "talk-2", **talk, "turn": 2, "prompt": "two"},
    ]
    write_rows(backlog, rows)
    run = system.start("batch", "run", str(backlog), "-o", str(results))
    assert run.wait(30) == 1
    answers = {answer["id"]: answer for answer in read_rows(results)}
    assert {name: answer["state"] for name, answer in answers.items()} == {
        "good": "completed", "bad": "failed", "talk-1": "failed", "talk-2": "completed",
    }  # fmt: skip
    assert answers["bad"]["error"]["code"] == "engine_failure"
    assert answers["bad"]["error"]["message"]
    assert answers["bad"]["reply"] is None
    assert answers["good"]["error"] is None
    said = run.log.read_text()
    assert "2 of 4 completed, 2 failed" in said
    assert "engine_failure" in said


def test_a_file_with_bad_lines_is_refused_as_a_whole(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, backlog: Path
) -> None:
    system = make_system(database_url, valkey_url)
    lines = [
        '{"id": "fine", "prompt": "hello"}',
        '{"id": "typo", "promt": "hello"}',
        "not json",
        '{"id": "fine", "prompt": "the id is taken"}',
    ]
    backlog.write_text("\n".join(lines))
    run = system.start("batch", "run", str(backlog))
    assert run.wait(20) == USAGE
    said = run.log.read_text()
    assert "'tickets.jsonl' has" in said
    assert "nothing was accepted" in said
    assert all(f"line {number}" in said for number in (2, 3, 4))
    assert "Did you mean 'prompt'?" in said
    assert system.count("true") == 0
    assert system.database.run("SELECT count(*) AS n FROM batches")[0].n == 0
    assert not backlog.with_name("tickets-results.jsonl").exists()

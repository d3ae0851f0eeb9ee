"""Rows that no file holds: submitted as they are made, and steered through real processes."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from turnmill.infra.bench.batch.made_rows import MadeRows
from turnmill.producer.batches import submission
from turnmill.producer.batches.backlog import NumberedRow
from turnmill.producer.batches.control import cancel_batch, pause, resume
from turnmill.producer.batches.progress import progress
from turnmill.producer.batches.results import results
from turnmill.producer.batches.submission import submit
from turnmill.schemas.batches import BatchProgress
from turnmill.schemas.turns import TurnState


class Pulled(MadeRows):
    """Notes how many rows were asked for."""

    pulled = 0

    def rows(self) -> Iterator[NumberedRow]:
        for row in super().rows():
            Pulled.pulled += 1
            yield row


def test_no_more_rows_are_held_than_one_transaction_accepts(
    make_system: Callable[..., Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = make_system(database_url, "amqp://nobody")
    monkeypatch.setattr(submission, "CHUNK_ROWS", 50)
    held: list[int] = []
    bot = system.settings.engine.model_name
    submit(
        system.database, system.tenant_id, bot, Pulled(1000),
        on_accepted=lambda count: held.append(Pulled.pulled - count),
    )  # fmt: skip
    assert len(held) == 20 and max(held) == 0


def test_rows_of_long_texts_make_short_pages(
    make_system: Callable[..., Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = make_system(database_url, "amqp://nobody")
    one = next(MadeRows(1).rows())[1].chars
    assert one > 50
    monkeypatch.setattr(submission, "CHUNK_CHARS", 10 * one)
    counts: list[int] = []
    bot = system.settings.engine.model_name
    submit(system.database, system.tenant_id, bot, MadeRows(95), on_accepted=counts.append)
    assert counts[-1] == 95
    assert max(now - before for before, now in pairwise([0, *counts])) <= 10


def test_two_submissions_at_once_accept_every_row_once_and_in_its_order(
    make_system: Callable[..., Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "CHUNK_ROWS", 40)
    systems = [make_system(database_url, "amqp://nobody") for _ in range(2)]
    bot = systems[0].settings.engine.model_name
    with ThreadPoolExecutor(2) as pool:
        done = [
            pool.submit(submit, each.database, each.tenant_id, bot, MadeRows(600))
            for each in systems
        ]
        (batch, same) = [each.result(60) for each in done]
    assert batch.batch_id == same.batch_id
    rows = list(results(systems[0].database, systems[0].tenant_id, batch.batch_id))
    assert [row.id for row in rows] == [f"made-{number}" for number in range(1, 601)]
    now = progress(systems[0].database, systems[0].tenant_id, batch.batch_id)
    assert now.states == {TurnState.QUEUED: 600}
    (hints,) = systems[0].database.run("SELECT count(*)::int AS n FROM outbox")
    assert hints.n == 600
    assert gc.isenabled()


def test_a_batch_is_steered_while_relay_and_worker_run(
    system: Any, eventually: Callable[..., None]
) -> None:
    system.start("relay")
    system.start_worker()
    bot, database = system.settings.engine.model_name, system.database
    batch = submit(database, system.tenant_id, bot, MadeRows(1500))

    def read() -> BatchProgress:
        return progress(database, system.tenant_id, batch.batch_id)

    eventually(lambda: read().completed > 20, 60)
    pause(database, batch)
    eventually(lambda: TurnState.RUNNING not in read().states, 60)
    paused = read()
    rows = list(results(database, system.tenant_id, batch.batch_id))
    assert len(rows) == 1500
    assert sum(row.state is TurnState.COMPLETED for row in rows) == paused.completed < 1500
    # Another batch does not wait behind the hints of this one.
    other = submit(database, system.tenant_id, bot, MadeRows(20), name="other")
    eventually(lambda: progress(database, system.tenant_id, other.batch_id).completed == 20, 60)
    assert read().states == paused.states

    resume(database, batch)
    eventually(lambda: read().completed > paused.completed + 20, 60)
    cancel_batch(database, batch)
    end = read()
    assert end.is_done and set(end.states) == {TurnState.COMPLETED, TurnState.CANCELLED}
    assert sum(end.states.values()) == 1500
    assert database.run("SELECT 1 FROM outbox") == []

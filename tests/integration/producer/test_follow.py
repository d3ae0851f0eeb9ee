"""Following a turn: late, reconnected or from the start, every reader sees the same text."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from turnmill.producer.accept import accept
from turnmill.producer.cancel import cancel
from turnmill.producer.follow import RESTART, Follower, Restart
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import new_id
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.turns import AcceptedTurn, Lane, Turn
from turnmill.workers.testing import InlineWorker

TEXT = " ".join(f"w{n}" for n in range(1, 31))


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str) -> Any:
    return make_system(database_url, "amqp://nobody", flush_s=0.02)


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that write past the workers notify nobody."""
    monkeypatch.setattr("turnmill.producer.follow.LOOK_S", 0.3)


def slow_worker(system: Any, token_s: float = 0.02) -> InlineWorker:
    engine = system.settings.engine.model_copy(update={"echo_token_s": token_s})
    worker = system.settings.worker.model_copy(update={"lanes": tuple(Lane)})
    return InlineWorker(system.settings.model_copy(update={"engine": engine, "worker": worker}))


def accept_text(system: Any, text: str = "[[tokens=30]]", **fields: Any) -> AcceptedTurn:
    return accept(system.database, system.request(text, **fields))


async def collect(items: AsyncIterator[str | Restart | Turn]) -> tuple[list[str], Turn]:
    texts: list[str] = []
    async for item in items:
        if isinstance(item, Turn):
            return texts, item
        assert not isinstance(item, Restart)
        texts.append(item)
    raise AssertionError("the turn itself never came")


def keep(system: Any, turn: AcceptedTurn, position: int, *texts: str) -> None:
    """As an attempt does, from this position on."""
    for number, text in enumerate(texts):
        system.database.run(
            "INSERT INTO chunks (turn_id, position, text, token_count) VALUES (%s, %s, %s, 1)",
            (turn.turn_id, position + number, text),
        )


def forget(system: Any) -> None:
    system.database.run("DELETE FROM chunks")


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - the database has no event
            await asyncio.sleep(0.01)


def run(system: Any, test: Callable[[Follower], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), Follower(system.database) as follower:
            await test(follower)

    asyncio.run(main())


def listener_pids(system: Any) -> list[int]:
    rows = system.database.run(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query = %s",
        (f"LISTEN {TURN_CHANNEL}",),
    )
    return [row.pid for row in rows]


def test_a_reader_sees_the_text_grow_and_then_the_turn(system: Any) -> None:
    async def test(follower: Follower) -> None:
        await until(lambda: listener_pids(system))
        turn = accept_text(system)
        with slow_worker(system, token_s=0.05):
            texts, settled = await collect(follower.follow(system.tenant_id, turn.turn_id))
        assert len([text for text in texts if text]) > 3
        assert "".join(texts) == TEXT
        assert settled.reply is not None
        assert settled.reply.content == TEXT

    run(system, test)


def test_a_reader_that_comes_late_sees_the_same_text(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system)
        with slow_worker(system, token_s=0.05):
            await until(lambda: system.database.run("SELECT 1 FROM chunks WHERE position >= 3"))
            halfway = await collect(follower.follow(system.tenant_id, turn.turn_id))
        afterwards = await collect(follower.follow(system.tenant_id, turn.turn_id))
        assert "".join(halfway[0]) == "".join(afterwards[0]) == TEXT
        assert halfway[0][0].startswith("w1 w2"), "what was said before comes at once"
        assert afterwards[1].reply == halfway[1].reply

    run(system, test)


def test_many_readers_of_one_turn_all_see_it(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system)
        readers = [
            asyncio.create_task(collect(follower.follow(system.tenant_id, turn.turn_id)))
            for _ in range(10)
        ]
        with slow_worker(system):
            for texts, _ in await asyncio.gather(*readers):
                assert "".join(texts) == TEXT
        assert follower._readers == {}

    run(system, test)


def test_a_reader_whose_listener_was_cut_off_still_sees_all(system: Any) -> None:
    async def test(follower: Follower) -> None:
        await until(lambda: listener_pids(system))
        (before,) = listener_pids(system)
        turn = accept_text(system)
        with slow_worker(system, token_s=0.05):
            reading = asyncio.create_task(collect(follower.follow(system.tenant_id, turn.turn_id)))
            await until(lambda: system.database.run("SELECT 1 FROM chunks"))
            system.database.run("SELECT pg_terminate_backend(%s)", (before,))
            await until(lambda: set(listener_pids(system)) - {before})
            texts, _ = await reading
        assert "".join(texts) == TEXT

    run(system, test)


def test_a_reader_outlasts_all_connections_being_cut(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system)
        reading = asyncio.create_task(collect(follower.follow(system.tenant_id, turn.turn_id)))
        with slow_worker(system, token_s=0.05):
            await until(lambda: system.database.run("SELECT 1 FROM chunks"))
            with psycopg.connect(system.settings.database.url.get_secret_value()) as link:
                link.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            texts, settled = await reading
        assert "".join(texts) == TEXT
        assert settled.reply is not None

    run(system, test)


def test_a_reader_hears_of_the_end_and_does_not_wait_for_its_next_look(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.producer.follow.LOOK_S", 600.0)
    monkeypatch.setattr("turnmill.producer.follow.POLL_S", 600.0)

    async def test(follower: Follower) -> None:
        await until(lambda: listener_pids(system))
        for lane in (Lane.INTERACTIVE, Lane.QUARANTINE, Lane.INTERACTIVE):
            turn = accept_text(system, "[[wait=0.2]] hi", lane=lane)
            _, settled = await collect(follower.follow(system.tenant_id, turn.turn_id))
            assert settled.state == "completed"

    with slow_worker(system, token_s=0.0):
        run(system, test)


def test_readers_that_wait_read_nothing_and_one_statement_looks_for_all_of_them(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.producer.follow.SIGN_OF_LIFE_S", 0.05)
    statements: list[str] = []
    fetch = system.database.fetch

    def counted(kind: Any, statement: str, params: Any = None) -> Any:
        statements.append(kind.__name__)
        return fetch(kind, statement, params)

    monkeypatch.setattr(system.database, "fetch", counted)

    async def test(follower: Follower) -> None:
        readers = [
            follower.follow(system.tenant_id, accept_text(system).turn_id) for _ in range(20)
        ]
        async with contextlib.AsyncExitStack() as stack:
            for reader in readers:
                await stack.enter_async_context(contextlib.aclosing(reader))
            waiting = [asyncio.create_task(_signs_of_life(reader, 40)) for reader in readers]
            await asyncio.gather(*waiting)
        assert statements.count("_TailRow") == len(readers)
        assert 1 <= statements.count("_LookRow") < len(readers)

    run(system, test)


async def _signs_of_life(reader: Any, count: int) -> None:
    for _ in range(count):
        assert await anext(reader) == ""


def test_a_reader_whose_notifications_were_lost_sees_all_once_it_is_listened_again(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnmill.producer.follow.LOOK_S", 600.0)

    async def test(follower: Follower) -> None:
        await until(lambda: listener_pids(system))
        (before,) = listener_pids(system)
        turn = accept_text(system)
        reader = follower.follow(system.tenant_id, turn.turn_id)
        async with contextlib.aclosing(reader):
            assert await anext(reader) == ""
            keep(system, turn, 0, "not notified")
            system.database.run("SELECT pg_terminate_backend(%s)", (before,))
            async for item in _until_text(reader, "not notified"):
                assert item == "not notified"

    run(system, test)


def test_a_reader_of_the_batch_lane_is_looked_after(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system, "quiet", lane=Lane.BATCH)
        reading = asyncio.create_task(collect(follower.follow(system.tenant_id, turn.turn_id)))
        with slow_worker(system, token_s=0.0):
            texts, _ = await reading
        assert "".join(texts) == "quiet"

    run(system, test)


def test_while_there_is_nothing_to_see_a_reader_gets_a_sign_of_life(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system)
        reader = follower.follow(system.tenant_id, turn.turn_id)
        async with contextlib.aclosing(reader):
            assert await anext(reader) == ""
            cancel(system.database, system.tenant_id, turn.turn_id)
            texts, settled = await collect(reader)
        assert (texts, settled.state, settled.reply) == ([], "cancelled", None)

    run(system, test)


@pytest.mark.parametrize("text", ["[[fail]]", ""])
def test_a_turn_without_text_still_ends(system: Any, text: str) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system, text)
        with slow_worker(system, token_s=0.0):
            texts, settled = await collect(follower.follow(system.tenant_id, turn.turn_id))
        assert "".join(texts) == ""
        assert settled.state == ("failed" if text else "completed")

    run(system, test)


def test_a_reader_is_told_when_the_reply_begins_again(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system)
        keep(system, turn, 0, "one ", "two ")
        reader = follower.follow(system.tenant_id, turn.turn_id)
        async with contextlib.aclosing(reader):
            assert await anext(reader) == "one two "
            keep(system, turn, 2, "never seen ")
            forget(system)
            keep(system, turn, 4, "", "uno ")
            items = [item async for item in _until_text(reader, "uno ")]
            late = follower.follow(system.tenant_id, turn.turn_id)
            async with contextlib.aclosing(late):
                assert await anext(late) == "uno ", "who saw nothing is told nothing"
            keep(system, turn, 6, "due ")
            items += [item async for item in _until_text(reader, "due ")]
        assert items == [RESTART, "uno ", "due "]

    run(system, test)


def test_a_reader_is_told_even_if_all_happens_between_two_looks(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system, "uno")
        keep(system, turn, 0, "one ")
        reader = follower.follow(system.tenant_id, turn.turn_id)
        async with contextlib.aclosing(reader):
            assert await anext(reader) == "one "
            forget(system)
            with slow_worker(system, token_s=0.0):
                await until(lambda: system.count("state = 'completed'"))
            items = [item async for item in reader]
        assert [item for item in items[:-1] if item] == [RESTART, "uno"]

    run(system, test)


async def _until_text(reader: Any, text: str) -> AsyncIterator[str | Restart | Turn]:
    """What the reader yields, signs of life aside, up to this text."""
    async for item in reader:
        if item:
            yield item
        if item == text:
            return


def test_a_turn_that_does_not_exist_is_not_found(system: Any) -> None:
    async def test(follower: Follower) -> None:
        with pytest.raises(NotFound):
            await collect(follower.follow(system.tenant_id, new_id()))

    run(system, test)


def test_a_turn_of_another_tenant_is_not_found_and_none_of_its_text_is_shown(system: Any) -> None:
    async def test(follower: Follower) -> None:
        turn = accept_text(system, "[[tokens=3]] [[wait=60]]")
        system.database.run(
            "INSERT INTO chunks (turn_id, position, text, token_count) VALUES (%s, 0, 'secret', 1)",
            (turn.turn_id,),
        )
        stranger: UUID = new_id()
        with pytest.raises(NotFound):
            async for item in follower.follow(stranger, turn.turn_id):
                raise AssertionError(f"shown: {item!r}")

    run(system, test)

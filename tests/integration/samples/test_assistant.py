"""The sample assistant: its client runs tools on a local service, and asks before it changes it."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from turnmill.infra.samples.bots.assistant.client import MAX_ROUNDS, TOOLS, Assistant
from turnmill.infra.samples.bots.assistant.service import Diary, Handler, serve
from turnmill.producer.cli.context import System
from turnmill.producer.cli.samples.install import find_sample, install
from turnmill.producer.tenants import create_key

DAY = '"day": "2026-12-01"'
EVENT = f'[[call=add_event {{{DAY}, "time": "19:00", "minutes": 120, "title": "Dinner"}}]]'
BOOKING = f'[[call=book_table {{"table": 3, {DAY}, "time": "19:00", "name": "Ann"}}]]'


@pytest.fixture
def service() -> Iterator[tuple[str, Diary]]:
    server = serve()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    handler: Any = server.RequestHandlerClass
    yield f"http://127.0.0.1:{server.server_port}", handler.diary
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(running: Any, system: System, start_api: Callable[..., str]) -> openai.OpenAI:
    install(system, find_sample("assistant"))
    running.start("relay")
    running.start_worker()
    key = create_key(running.database, running.tenant_id, "test")
    return openai.OpenAI(base_url=f"{start_api(running)}/v1", api_key=key, timeout=60)


def test_the_assistant_looks_asks_and_then_changes(
    client: openai.OpenAI, service: tuple[str, Diary]
) -> None:
    url, diary = service
    asked: list[str] = []

    def confirm(name: str, values: dict[str, Any]) -> bool:
        asked.append(name)
        return True

    assistant = Assistant(client, url, confirm)
    assert assistant.say(f"[[call=list_events {{{DAY}}}]]") == "[]"
    assert '"title": "Dinner"' in assistant.say(EVENT)
    assert "Dinner" in assistant.say(f"[[call=list_events {{{DAY}}}]]")
    assert "is at 19:00 already" in assistant.say(EVENT)
    free = assistant.say(f'[[call=find_table {{{DAY}, "time": "19:00", "people": 4}}]]')
    assert '"table": 3' in free
    assert '"booking": 1' in assistant.say(BOOKING)
    assert "is taken" in assistant.say(BOOKING)
    assert asked == ["add_event", "add_event", "book_table", "book_table"]
    assert (len(diary.events), len(diary.bookings)) == (1, 1)


def test_nothing_is_changed_when_the_user_says_no_or_the_arguments_are_wrong(
    client: openai.OpenAI, service: tuple[str, Diary]
) -> None:
    url, diary = service
    assert "The user said no" in Assistant(client, url, lambda *_: False).say(EVENT)
    willing = Assistant(client, url, lambda *_: True)
    assert "do not fit" in willing.say(f"[[call=add_event {{{DAY}}}]]")
    assert "is no time" in willing.say(EVENT.replace("19:00", "25:99"))
    assert (diary.events, diary.bookings) == ([], [])


def test_a_service_that_is_away_is_told_to_the_model(client: openai.OpenAI) -> None:
    away = Assistant(client, "http://127.0.0.1:1", lambda *_: True)
    assert "does not answer" in away.say(f"[[call=list_events {{{DAY}}}]]")


def test_each_tool_that_is_offered_is_one_of_the_service() -> None:
    assert sorted(tool["function"]["name"] for tool in TOOLS) == sorted(Handler.CALLS)
    assert MAX_ROUNDS > 1

"""An engine that cannot go on after a prefix: its worker is killed in the middle of a reply, and
the next one begins again. Whoever watched is told, and then sees the whole text.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

Eventually = Callable[..., None]

QUESTION = "[[tokens=60]]"
TEXT = " ".join(f"w{n}" for n in range(1, 61))
BEGINS_AGAIN = {
    "TURNMILL_ENGINE__ECHO_TOKEN_S": "0.01",
    "TURNMILL_ENGINE__ECHO_CAN_CONTINUE": "false",
}


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    system = make_system(database_url, valkey_url)
    system.start("relay")
    return system


@pytest.fixture
def client(system: Any) -> openai.OpenAI:
    return system.start_api()


def watch(client: openai.OpenAI, seen: list[Any]) -> None:
    """Two readers in one: the chunks, and what OpenAI's own client makes of them."""
    with client.chat.completions.stream(
        model="smollm2-135m-instruct", messages=[{"role": "user", "content": QUESTION}]
    ) as stream:
        for event in stream:
            if event.type == "chunk":
                seen.append(event.chunk)
        assert stream.get_final_completion().choices[0].finish_reason == "stop"


def text_of(chunks: Sequence[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_readers_of_a_reply_that_begins_again_are_told_and_see_all_of_it(
    system: Any, client: openai.OpenAI, eventually: Eventually
) -> None:
    doomed = system.start_worker(**BEGINS_AGAIN | {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.5"})
    seen: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, client, seen)
        asked = system.start("ask", QUESTION)
        eventually(lambda: "w2" in text_of(seen) and asked.says("w2"), 30)
        doomed.kill()
        system.start_worker(**BEGINS_AGAIN)
        watching.result(60)
    marks = [n for n, chunk in enumerate(seen) if getattr(chunk, "turnmill", None)]
    assert [seen[mark].turnmill for mark in marks] == [{"restarted": True}]
    assert TEXT.startswith(text_of(seen[: marks[0]]))
    assert text_of(seen[marks[0] :]) == TEXT
    assert asked.wait(30) == 0
    _, _, said = asked.log.read_text().partition("(The reply begins again.)")
    assert said.split() == TEXT.split()
    for row in system.database.run("SELECT content, completion_tokens FROM replies"):
        assert (row.content, row.completion_tokens) == (TEXT, 60)
    assert system.count("attempt = 2 AND crashes = 1") == 2

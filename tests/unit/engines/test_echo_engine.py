"""The fake engine fails exactly when it is told to."""

import threading
import time

import pytest

from turnmill.schemas.errors import EngineDied, EngineFailure, EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.abort import Abort


def say(text: str, engine: EchoEngine | None = None, prefix: str = "", seed: int = 1) -> str:
    engine = engine or EchoEngine(EngineSettings(name="echo"))
    prompt = Prompt((Message(role=Role.USER, content=text),), prefix)
    params = GenerationParams(seed=seed).over(DEFAULT_PARAMS)
    return "".join(chunk.text for chunk in engine.generate(prompt, params, Abort()))


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Good  day\nto you ", "Good  day\nto you"),
        ("[[tokens=3]]", "w1 w2 w3"),
        ("[[wait=0.001]] soon", "soon"),
        ("", ""),
    ],
)
def test_it_repeats_the_message(text: str, reply: str) -> None:
    assert say(text) == reply


@pytest.mark.parametrize("cut", [0, 2, 3, 7, 11])
def test_it_goes_on_after_any_prefix(cut: int) -> None:
    full = "w1 w2 w3 w4"
    assert full[:cut] + say("[[tokens=4]]", prefix=full[:cut]) == full


def test_whether_it_goes_on_after_a_prefix_is_a_setting() -> None:
    assert EchoEngine(EngineSettings(name="echo")).capabilities.continues
    assert not EchoEngine(
        EngineSettings(name="echo", echo_can_continue=False)
    ).capabilities.continues


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("[[fail]]", EngineFailure),
        ("[[unavailable]]", EngineUnavailable),
        ("[[die]]", EngineDied),
        ("[[memory]]", MemoryError),
        ("[[exit]]", SystemExit),
    ],
)
def test_magic_words_raise(word: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        say(f"please {word}")


def test_a_seed_decides_which_turns_fail() -> None:
    engine = EchoEngine(EngineSettings(name="echo", echo_failure_rate=0.5))

    def fails(text: str) -> bool:
        try:
            return say(text, engine) != text
        except EngineUnavailable:
            return True

    fates = [fails(f"turn {number}") for number in range(40)]
    assert fates == [fails(f"turn {number}") for number in range(40)]
    assert 5 < sum(fates) < 35


def test_an_abort_ends_a_wait_at_once() -> None:
    abort = Abort()
    prompt = Prompt((Message(role=Role.USER, content="[[wait=60]] late"),))
    chunks = EchoEngine(EngineSettings(name="echo")).generate(prompt, DEFAULT_PARAMS, abort)
    threading.Timer(0.05, abort.set).start()
    started_at = time.monotonic()
    assert list(chunks) == []
    assert time.monotonic() - started_at < 10

"""A real Triton: replicas that die, versions, models that are missing, turns that are aborted."""

import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import pytest

from turnmill.schemas.errors import ContextOverflow, EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

pytestmark = pytest.mark.needs("triton")

#: Two hundred seconds' worth of tokens: nobody ends it by waiting.
ENDLESS = "[[tokens=4000]]"
SLOW = {"name": "echo", "echo_token_s": 0.05}


@contextmanager
def connected(*endpoints: str, **settings: Any) -> Iterator[Engine]:
    settings = {"remote_model": "turnmill", "check_every_s": 0.2} | settings
    engine = create_engine(EngineSettings(name="triton", endpoints=endpoints, **settings))
    with closing(engine):
        engine.start()
        yield engine


def ask(engine: Engine, text: str, abort: threading.Event | None = None) -> Iterator[Chunk]:
    prompt = Prompt((Message(role=Role.USER, content=text),))
    params = GenerationParams(temperature=0, max_tokens=4000).over(DEFAULT_PARAMS)
    return engine.generate(prompt, params, abort or Abort())


def text_of(chunks: Iterator[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def running_turns(server: Any) -> float:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(one.split()[-1]) for one in lines if one.startswith("turnmill_turns_running"))


@pytest.fixture(scope="module")
def slow(start_triton: Callable[..., Any]) -> Any:
    return start_triton({1: SLOW, 2: SLOW | {"context_window": 512}})


def test_a_turn_whose_replica_is_killed_ends_at_another_with_the_same_text(
    start_triton: Callable[..., Any],
) -> None:
    servers = {each.endpoint: each for each in (start_triton({1: SLOW}), start_triton({1: SLOW}))}
    with connected(*servers) as engine:
        reply = ask(engine, "[[tokens=60]]")
        text = text_of(islice(reply, 5))
        busy = [each for each in servers.values() if running_turns(each)]
        assert len(busy) == 1
        busy[0].kill()
        rest = list(reply)
    assert text + text_of(iter(rest)) == " ".join(f"w{number}" for number in range(1, 61))
    assert 5 + sum(chunk.token_count for chunk in rest) == 60
    assert rest[-1].finish_reason == "stop"


def test_an_abort_frees_the_engine_behind_the_server_and_spares_the_neighbour(
    slow: Any, eventually: Callable[..., None]
) -> None:
    with connected(slow.endpoint) as engine:
        abort = Abort()
        neighbour, aborted, left = ask(engine, ENDLESS), ask(engine, ENDLESS, abort), None
        assert next(neighbour).token_count == next(aborted).token_count == 1
        left = ask(engine, ENDLESS)
        next(left)
        assert running_turns(slow) == 3
        abort.set()
        assert sum(chunk.token_count for chunk in aborted) <= 2
        left.close()  # type: ignore[attr-defined]
        eventually(lambda: running_turns(slow) == 1)
        assert len(list(islice(neighbour, 5))) == 5
    eventually(lambda: running_turns(slow) == 0)


def test_a_version_is_asked_for_by_its_number_and_the_latest_by_none(slow: Any) -> None:
    for version, window in (("1", 8192), ("2", 512), (None, 512)):
        with connected(slow.endpoint, remote_version=version) as engine:
            assert engine.context_window == window


@pytest.mark.parametrize(
    "wrong", [{"remote_version": "3"}, {"remote_model": "missing"}], ids=["version", "model"]
)
def test_a_model_that_is_not_loaded_is_named(slow: Any, wrong: dict[str, str]) -> None:
    named = pytest.raises(EngineUnavailable, match=next(iter(wrong.values())))
    with named, connected(slow.endpoint, **wrong):
        pass


def test_an_error_of_the_served_engine_keeps_its_kind(slow: Any) -> None:
    with connected(slow.endpoint, remote_version="2") as engine:
        with pytest.raises(ContextOverflow) as caught:
            list(ask(engine, "word " * 600))
        assert caught.value.param == "messages"


def test_a_silent_server_is_left_at_the_abort_and_after_silence_s(slow: Any) -> None:
    with connected(slow.endpoint, silence_s=1.0) as engine:
        abort = Abort()
        timer = threading.Timer(0.2, abort.set)
        timer.start()
        assert list(ask(engine, "[[wait=60]]", abort)) == []
        timer.join()
        with pytest.raises(EngineUnavailable, match="said nothing for 1 s"):
            list(ask(engine, "[[wait=60]]"))

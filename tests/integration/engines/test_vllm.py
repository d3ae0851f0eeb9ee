"""vLLM's own processes: lanes, slots, death; none is left behind (`make test-vllm`)."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import psutil
import pytest

from turnmill.schemas.errors import EngineAway, EngineDied, EngineFailure
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Lane, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

pytestmark = pytest.mark.needs("vllm")

MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()
STORY = "Write a long story about a fox and a hen who sail across the sea to find a new home. "
#: Two slots, one of which is kept for the interactive lane.
SETTINGS = {
    "name": "vllm",
    "device": "cpu",
    "dtype": "float32",
    "context_window": 512,
    "max_batch_size": 2,
    "kv_cache_gib": 0.25,
    "prefill_tokens": 32,
    "models_dir": str(MODELS_DIR),
}

#: A worker's life, as far as vLLM is concerned: it waits to be killed.
PROGRAM = f"""
import time
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.registry import create_engine

if __name__ == "__main__":
    engine = create_engine(EngineSettings.model_validate({SETTINGS!r}))
    engine.start()
    print("started", flush=True)
    time.sleep(600)
"""


def new_engine(**changes: object) -> Engine:
    return create_engine(EngineSettings.model_validate(SETTINGS | changes))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = new_engine()
    engine.start()
    yield engine
    engine.close()


def generate(
    engine: Engine,
    text: str = STORY,
    max_tokens: int = 8,
    lane: Lane = Lane.INTERACTIVE,
    abort: Abort | None = None,
    temperature: float = 0,
) -> Iterator[Chunk]:
    given = GenerationParams(temperature=temperature, seed=7, max_tokens=max_tokens)
    params = given.over(DEFAULT_PARAMS)
    prompt = Prompt((Message(role=Role.USER, content=text),), lane=lane)
    return engine.generate(prompt, params, abort or Abort())


def text_of(chunks: Iterable[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def is_vllm(process: psutil.Process) -> bool:
    return title(process).startswith("VLLM::")


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """What `is_running` says yes to includes the dead whom nobody has buried."""
    return [each for each in processes if each.is_running() and not is_zombie(each)]


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_prompt_that_was_there_before_is_not_computed_again(engine: Engine) -> None:
    text = "Once there was " + STORY * 10
    first, second = (list(generate(engine, text))[-1] for _ in range(2))
    assert first.cached_tokens == 0
    # Whole blocks of 32 tokens; the last token is always computed.
    assert second.cached_tokens == (first.prompt_tokens - 1) // 32 * 32 > 0


def test_a_seed_counts_from_the_first_token_of_the_reply(engine: Engine) -> None:
    """However many steps its prompt takes: all of it in pieces, then the rest beside the cache."""
    text = "In another time there was " + STORY * 10
    first, second = (list(generate(engine, text, temperature=1.0)) for _ in range(2))
    assert second[-1].cached_tokens > 0
    assert text_of(second) == text_of(first) != text_of(generate(engine, text))


def test_an_interactive_turn_does_not_wait_for_the_batch_lane(engine: Engine) -> None:
    order = []

    def answer(name: str, lane: Lane) -> None:
        list(generate(engine, max_tokens=100, lane=lane))
        order.append(name)

    with ThreadPoolExecutor(4) as pool:
        saturated = [pool.submit(answer, "batch", Lane.BATCH) for _ in range(3)]
        next(generate(engine))
        pool.submit(answer, "interactive", Lane.INTERACTIVE).result(timeout=120)
        for each in saturated:
            each.result(timeout=120)
    assert order.index("interactive") <= 1
    assert len(order) == 4


def test_a_long_prompt_of_the_batch_lane_lets_an_interactive_turn_pass(
    engine: Engine, eventually: Callable[..., None]
) -> None:
    order: list[str] = []

    def answer(name: str, chunks: Iterator[Chunk]) -> None:
        for chunk in chunks:
            if chunk.token_count and name not in order:
                order.append(name)

    eventually(lambda: not any(engine.held.values()))
    with ThreadPoolExecutor(2) as pool:
        # More than ten steps' worth.
        long = generate(engine, "A story of old. " + STORY * 18, lane=Lane.BATCH)
        batch = pool.submit(answer, "batch", long)
        eventually(lambda: engine.held["requests"] > 0)
        pool.submit(answer, "interactive", generate(engine, "Hello!")).result(timeout=120)
        batch.result(timeout=120)
    assert order == ["interactive", "batch"]


@pytest.mark.parametrize("lane", list(Lane)[:2])
def test_running_turns_go_on_while_a_long_prompt_is_computed(engine: Engine, lane: Lane) -> None:
    """At most `prefill_tokens` (32) of a prompt between two of their tokens, whoever it is for."""
    running, has_begun = generate(engine, max_tokens=300, lane=lane), threading.Event()
    said: list[int] = []
    next(running)

    def read_on() -> None:
        for chunk in running:
            if has_begun.is_set():
                return
            said.append(chunk.token_count)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read_on)
        chunks = generate(engine, f"The {lane} story. " + STORY * 15)
        next(chunks)
        has_begun.set()
        reader.result(timeout=120)
        prompt_tokens = list(chunks)[-1].prompt_tokens
    running.close()  # type: ignore[attr-defined]
    assert sum(said) >= prompt_tokens // 32 - 2 > 6


def test_a_turn_that_waits_for_a_slot_can_be_aborted(engine: Engine) -> None:
    running = generate(engine, max_tokens=300, lane=Lane.BATCH)
    next(running)
    abort = Abort()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, generate(engine, lane=Lane.BATCH, abort=abort))
        abort.set()
        assert waiting.result(timeout=30) == []
    running.close()  # type: ignore[attr-defined]


def test_readers_who_leave_take_no_slot_with_them(engine: Engine) -> None:
    chance = random.Random(7)
    for _ in range(30):
        lane = chance.choice(list(Lane)[:2])
        chunks = generate(engine, max_tokens=300, lane=lane)
        list(islice(chunks, chance.randrange(3)))
        chunks.close()  # type: ignore[attr-defined]
    assert [len(list(generate(engine, lane=lane))) > 0 for lane in list(Lane)[:2]] == [True, True]


def test_a_killed_engine_tells_everyone_and_takes_no_more(eventually: Callable[..., None]) -> None:
    before = children(os.getpid())
    engine = new_engine()
    engine.start()
    waiting = generate(engine, max_tokens=400)
    next(waiting)
    started = [each for each in children(os.getpid()) if each not in before and is_vllm(each)]
    next(each for each in started if "EngineCore" in title(each)).kill()
    with pytest.raises(EngineDied):
        list(waiting)
    with pytest.raises(EngineAway):
        list(generate(engine))
    engine.close()
    eventually(lambda: not living(started), 60)


def test_a_killed_worker_leaves_no_process_of_vllm(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            assert b"started\n" in worker.stdout
            started = [each for each in children(worker.pid) if is_vllm(each)]
        finally:
            worker.kill()
    assert started
    eventually(lambda: not living(started), 60)


def test_a_model_that_does_not_fit_says_why() -> None:
    with pytest.raises(EngineFailure, match="cannot be loaded"):
        new_engine(context_window=1_000_000).start()

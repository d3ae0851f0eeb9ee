"""Whatever happens to the scheduler, nobody waits for ever."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from turnmill.schemas.errors import EngineDied, EngineFailure, EngineUnavailable, PermanentError
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.batching import BatchingEngine, Generation, LoadedModel, Token
from turnmill.workers.engines.chat_template import ChatTemplate


class LetterBatch:
    """Says the letter that the prompt ends with."""

    def __init__(self) -> None:
        self.generations: Sequence[Generation] = []
        self.on_step: Callable[[], None] = lambda: None
        self.may_step = threading.Event()
        self.may_step.set()

    @property
    def is_busy(self) -> bool:
        return bool(self.generations)

    def admit(self, generation: Generation) -> None:
        if generation.prompt_ids[-1] == ord("!"):
            raise ValueError("no shouting")
        self.generations = [*self.generations, generation]

    def step(self) -> None:
        self.may_step.wait()
        self.on_step()
        for generation in self.generations:
            if generation.is_unwanted:
                generation.events.put(None)
            else:
                generation.events.put(Token(generation.prompt_ids[-1]))
        self.generations = [each for each in self.generations if not each.is_unwanted]


@pytest.fixture
def batch() -> LetterBatch:
    return LetterBatch()


@pytest.fixture
def engine(batch: LetterBatch) -> Iterator[BatchingEngine]:
    model = LoadedModel(
        batch=batch,
        template=ChatTemplate("{{ messages[-1].content }}"),
        encode=lambda text: [ord(letter) for letter in text],
        decode=lambda ids: "".join(map(chr, ids)),
        context_window=1000,
        vocabulary_size=128,
    )
    engine = BatchingEngine(EngineSettings(), lambda _: model)
    engine.start()
    yield engine
    engine.close()


def ask(engine: BatchingEngine, text: str, abort: threading.Event | None = None) -> str:
    prompt = Prompt((Message(role=Role.USER, content=text),))
    params = GenerationParams(stop=("zzzz", "yyyy")).over(DEFAULT_PARAMS)
    return "".join(c.text for c in engine.generate(prompt, params, abort or threading.Event()))


def test_a_dead_scheduler_tells_everyone_and_takes_no_more(
    engine: BatchingEngine, batch: LetterBatch
) -> None:
    def break_down() -> None:
        raise RuntimeError("device lost")

    batch.may_step.clear()
    batch.on_step = break_down
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, engine, letter) for letter in "abcd"]
        batch.may_step.set()
        for each in waiting:
            with pytest.raises(EngineUnavailable):
                each.result(timeout=30)
    with pytest.raises(EngineDied, match="device lost"):
        ask(engine, "e")


def test_a_refused_turn_fails_alone(engine: BatchingEngine) -> None:
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ask, engine, "z")
        with pytest.raises(EngineFailure, match="no shouting"):
            ask(engine, "help!")
        assert good.result(timeout=30) == ""


def test_tokens_outside_the_vocabulary_never_reach_the_batch(engine: BatchingEngine) -> None:
    with pytest.raises(EngineFailure):
        ask(engine, "é")


def test_an_abort_reaches_a_turn_that_has_no_token_yet(
    engine: BatchingEngine, batch: LetterBatch
) -> None:
    batch.may_step.clear()
    abort = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, engine, "a", abort)
        abort.set()
        batch.may_step.set()
        assert waiting.result(timeout=30) == ""


def test_closing_ends_running_turns(engine: BatchingEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        prompt = Prompt((Message(role=Role.USER, content="a"),))
        chunks = engine.generate(prompt, DEFAULT_PARAMS, threading.Event())
        next(chunks)
        pool.submit(engine.close).result(timeout=30)
        with pytest.raises(EngineUnavailable):
            for _ in chunks:
                pass


def test_what_cannot_be_loaded_is_said_in_our_words() -> None:
    def load(_: EngineSettings) -> LoadedModel:
        raise OSError("no such file")

    with pytest.raises(PermanentError, match="no such file"):
        BatchingEngine(EngineSettings(), load).start()

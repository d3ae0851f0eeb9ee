"""Whatever happens to the scheduler, nobody waits for ever."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import structlog

from turnmill.schemas.content import MediaPart
from turnmill.schemas.errors import (
    EngineAway,
    EngineDied,
    EngineFailure,
    EngineUnavailable,
    InvalidInput,
    PermanentError,
    SettingsError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.local.batching import (
    BatchingEngine,
    TextSide,
    _with_one_tokenizer,
)
from turnmill.workers.engines.local.child import ChildScheduler
from turnmill.workers.engines.local.scheduling import Facts, Generation, Token
from turnmill.workers.engines.local.seeing import Seen
from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.turn.abort import Abort

log = structlog.get_logger()


class LetterBatch:
    """Says the letter that the prompt ends with, once or until it is told to stop."""

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self.steps = 0

    @property
    def is_busy(self) -> bool:
        return bool(self.generations)

    @property
    def held(self) -> dict[str, float]:
        return {"turns": len(self.generations)}

    def admit(self, generation: Generation) -> None:
        if generation.prompt_ids[-1] == ord("!"):
            raise ValueError("no shouting")
        self.generations.append(generation)

    def step(self) -> None:
        time.sleep(0.001)
        letters = [chr(each.prompt_ids[-1]) for each in self.generations]
        if "#" in letters:
            raise RuntimeError("device lost")
        if "$" in letters:
            os.kill(os.getpid(), signal.SIGKILL)
        if "?" in letters:
            log.warning("question.asked", count=letters.count("?"))
        for generation in self.generations:
            if generation.prompt_ids[-1] == ord("@") and self.steps:
                wait_while_exists("".join(map(chr, generation.prompt_ids[:-1])))
            if generation.prompt_ids[-1] != ord(" "):
                reason = "length" if generation.limit == 1 else None
                generation.events.put(Token(generation.prompt_ids[-1], reason))
        self.steps += 1
        self.generations = [each for each in self.generations if each.limit > 1]

    def drop_unwanted(self) -> None:
        for generation in [each for each in self.generations if each.is_unwanted]:
            generation.events.put(None)
            self.generations.remove(generation)


def wait_while_exists(path: str) -> None:
    while Path(path).exists():
        time.sleep(0.001)


def load_text(_: EngineSettings) -> TextSide:
    return TextSide(
        template=ChatTemplate("{{ messages[-1].content }}"),
        encode=lambda text: [ord(letter) for letter in text],
        decode=lambda ids: "".join(map(chr, ids)),
    )


def load_batch(settings: EngineSettings) -> tuple[LetterBatch, Facts]:
    match settings.model:
        case "missing":
            raise OSError("no such file")
        case "unsuitable":
            raise SettingsError("Choose another model.")
        case "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
    return LetterBatch(), Facts(context_window=1000, vocabulary_size=128)


def make_engine(model: str = "letters") -> BatchingEngine:
    schedule = partial(ChildScheduler, f"{__name__}:load_batch")
    return BatchingEngine(EngineSettings(model=model), load_text, schedule)


@pytest.fixture
def engine() -> Iterator[BatchingEngine]:
    engine = make_engine()
    engine.start()
    yield engine
    engine.close()


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def ask(engine: BatchingEngine, text: str, abort: Abort | None = None, limit: int = 900) -> str:
    prompt = Prompt((Message(role=Role.USER, content=text),))
    params = GenerationParams(stop=("zzzz", "yyyy"), max_tokens=limit).over(DEFAULT_PARAMS)
    return "".join(c.text for c in engine.generate(prompt, params, abort or Abort()))


@pytest.mark.parametrize(("letter", "reason"), [("#", "device lost"), ("$", "was killed")])
def test_a_dead_batch_tells_everyone_and_takes_no_more(
    engine: BatchingEngine, letter: str, reason: str
) -> None:
    # Many: those that were told leave while the rest still is.
    with ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(ask, engine, each) for each in f"{'abc' * 13}{letter}"]
        for each in waiting:
            with pytest.raises(EngineUnavailable):
                each.result(timeout=30)
    with pytest.raises(EngineDied, match=reason):
        engine.check()
    with pytest.raises(EngineAway, match=reason):
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


def test_an_abort_reaches_a_turn_that_has_no_token_yet(engine: BatchingEngine) -> None:
    abort = Abort()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, engine, "silence: ", abort)
        assert not waiting.done()
        abort.set()
        assert waiting.result(timeout=30) == ""


def test_an_abort_does_not_wait_for_the_step_that_lasts(
    engine: BatchingEngine, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    gate, abort = tmp_path / "gate", Abort()
    gate.touch()
    prompt = Prompt((Message(role=Role.USER, content=f"{gate}@"),))
    chunks = engine.generate(prompt, DEFAULT_PARAMS, abort)
    assert next(iter(chunks)).text == "@"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, chunks)
        eventually(reading.running)
        try:
            abort.set()
            assert reading.result(timeout=30) == []
        finally:
            gate.unlink()


def test_what_the_batch_logs_is_logged_here(
    engine: BatchingEngine,
) -> None:
    with structlog.testing.capture_logs() as logs:
        ask(engine, "what?", limit=1)
    assert {"event": "question.asked", "count": 1, "log_level": "warning"} in logs


def test_what_the_chat_template_is_given_is_counted_as_it_is_generated_from() -> None:
    def load(settings: EngineSettings) -> TextSide:
        source = "{{ effort | default('') }}{{ messages[-1].content }}"
        return replace(load_text(settings), template=ChatTemplate(source))

    schedule = partial(ChildScheduler, f"{__name__}:load_batch")
    engine = BatchingEngine(EngineSettings(model="letters"), load, schedule)
    engine.start()
    try:
        prompt = Prompt(
            (Message(role=Role.USER, content="abc"),), template_kwargs={"effort": "low "}
        )
        params = GenerationParams(max_tokens=1).over(DEFAULT_PARAMS)
        *_, last = engine.generate(prompt, params, Abort())
        assert last.prompt_tokens == 7
        assert engine.count_tokens(prompt) == 7
    finally:
        engine.close()


class Pixels:
    """What eyes prepare of an image."""


class LookingEyes:
    limit = 8

    def mark(self, number: int) -> str | None:
        return f"<{number}>"

    def count(self, prompt_ids: Sequence[int], images: Sequence[str], namespace: str) -> int:
        return len(self.look(prompt_ids, images, namespace).prompt_ids)

    def look(self, prompt_ids: Sequence[int], images: Sequence[str], namespace: str) -> Seen:
        if any(image.endswith("13") for image in images):
            raise InvalidInput("The model cannot read the images.")
        return Seen(prompt_ids, Pixels())


SHOWN = "{% for message in messages %}{{ message.content }} {% endfor %}"


class HereScheduler:
    """Says a letter for each prompt at once, in this process, and takes what it is given."""

    held: Mapping[str, float] = {}
    facts = Facts(context_window=1000, vocabulary_size=128, eyes=LookingEyes())

    def __init__(self, settings: EngineSettings) -> None:
        self.taken: list[weakref.ref[Pixels]] = []
        self.prompts: list[str] = []

    def submit(self, generation: Generation) -> None:
        inputs, generation.inputs = generation.inputs, None
        assert isinstance(inputs, Pixels)
        self.taken.append(weakref.ref(inputs))
        self.prompts.append("".join(map(chr, generation.prompt_ids)))
        generation.events.put(Token(ord("a")))

    def give_up(self, generation: Generation) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


def shown(*numbers: int, role: Role = Role.USER) -> Message:
    url = "data:image/png;base64,"
    parts = tuple(
        MediaPart.model_construct(type="image", file_id=f"file_{number}", url=f"{url}{number}")
        for number in numbers
    )
    return Message.model_construct(role=role, content=parts)


def test_what_was_prepared_of_images_is_let_go_of_before_the_reply_ends() -> None:
    scheduler = HereScheduler(EngineSettings())
    engine = BatchingEngine(EngineSettings(model="letters"), load_text, lambda _: scheduler)
    engine.start()
    chunks = engine.generate(Prompt((shown(1),)), DEFAULT_PARAMS, Abort())
    assert next(iter(chunks)).text == "a"
    assert [each() for each in scheduler.taken] == [None]
    engine.close()


def test_an_image_of_the_past_that_cannot_be_read_is_named() -> None:
    def load(settings: EngineSettings) -> TextSide:
        return replace(load_text(settings), template=ChatTemplate(SHOWN))

    scheduler = HereScheduler(EngineSettings())
    engine = BatchingEngine(EngineSettings(model="letters"), load, lambda _: scheduler)
    engine.start()
    params = GenerationParams(max_tokens=1).over(DEFAULT_PARAMS)
    said = Message(role=Role.ASSISTANT, content="ok")
    for _ in range(2):
        prompt = Prompt((shown(1, 13), said, shown(2)))
        assert engine.count_tokens(prompt) == len("<1>\n[image] ok <2> ")
        next(iter(engine.generate(prompt, params, Abort())))
        for own in (Prompt((shown(1), said, shown(13))), Prompt((shown(13), said, shown(13)))):
            with pytest.raises(InvalidInput):
                engine.count_tokens(own)
            with pytest.raises(InvalidInput):
                next(iter(engine.generate(own, params, Abort())))
    assert scheduler.prompts == ["<1>\n[image] ok <2> "] * 2
    engine.close()


def test_one_thread_at_a_time_asks_the_tokenizer() -> None:
    busy = threading.Lock()

    def alone(_: object) -> bytes:
        assert busy.acquire(blocking=False), "another thread is in the tokenizer"
        time.sleep(0.005)
        busy.release()
        return b""

    text = TextSide(
        ChatTemplate(""),
        encode=lambda words: list(alone(words)),
        decode=lambda ids: alone(ids).decode(),
        bytes_of=alone,
    )
    text = _with_one_tokenizer(text)
    ways = (lambda: text.encode("a"), lambda: text.decode([1]), lambda: text.bytes_of(1))
    with ThreadPoolExecutor(9) as pool:
        assert {bool(each.result()) for each in [pool.submit(way) for way in ways * 6]} == {False}


def test_closing_ends_running_turns(engine: BatchingEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        prompt = Prompt((Message(role=Role.USER, content="a"),))
        chunks = engine.generate(prompt, DEFAULT_PARAMS, Abort())
        next(chunks)
        pool.submit(engine.close).result(timeout=30)
        with pytest.raises(EngineUnavailable):
            for _ in chunks:
                pass


@pytest.mark.parametrize(
    ("model", "error", "reason"),
    [
        ("missing", EngineFailure, "'missing' cannot be loaded: no such file"),
        ("unsuitable", SettingsError, "Choose another model."),
        ("fatal", EngineFailure, "was killed"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_our_words(
    model: str, error: type[PermanentError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        make_engine(model).start()


def test_closing_ends_the_process() -> None:
    others = set(children())
    engine = make_engine()
    engine.start()
    [child] = set(children()) - others
    engine.close()
    assert not child.is_running()


def test_a_killed_parent_takes_its_engine_along(eventually: Callable[..., None]) -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path}; import {__name__} as t, time; "
        "e = t.make_engine(); e.start(); print(t.children()[0].pid, file=sys.stderr); "
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as parent:
        assert parent.stderr is not None
        child = psutil.Process(int(parent.stderr.readline()))
        parent.kill()
    eventually(lambda: not child.is_running())

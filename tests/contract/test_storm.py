"""A storm of turns through every engine: nothing leaks, and nobody gets another one's text.

Each turn is one that the engine has answered alone before, so that its text is known; some are
aborted or left by their readers at random. `make test-storm` asks each engine 1,000 of them.
"""

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import accumulate, islice
from typing import Any

import psutil
import pytest

from tests.selection import storm_turns
from turnmill.schemas.errors import ContextOverflow
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Lane, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.local.batching import BatchingEngine, TextSide
from turnmill.workers.engines.local.child import ChildScheduler
from turnmill.workers.engines.local.scheduling import Facts
from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.turn.abort import Abort

SEED = int(os.environ.get("STORM_SEED", "1"))
#: Turns by default, where they cost next to nothing, little, and more.
MANY, SOME, FEW = 1_000, 60, 24
DEFAULTS = {"echo": MANY, "openvino": SOME}
#: More than the engines take at once.
READERS = 12

TEXTS = (
    "What is the capital of Peru?",
    "Repeat: 😀👩‍👩‍👧 naïve 你好世界",
    "Write a long story about a fox and a hen who sail across the sea.",
    "",
)


@dataclass(frozen=True, slots=True)
class Order:
    """A turn whose answer is known."""

    prompt: Prompt
    params: GenerationParams
    #: What the engine says to it alone; None: it does not fit.
    text: str | None


@dataclass(frozen=True, slots=True)
class Fate:
    """How long a turn is wanted: for so many chunks, or seconds; None: to its end."""

    chunks: int | None = None
    #: Whether its reader leaves then, or has it aborted.
    leaves: bool = False
    seconds: float | None = None


def ask(text: str) -> Prompt:
    return Prompt((Message.model_construct(role=Role.USER, content=text),))


def make_params(**values: Any) -> GenerationParams:
    greedy = GenerationParams(temperature=0, max_tokens=6).over(DEFAULT_PARAMS)
    return GenerationParams.model_validate(values).over(greedy)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def longest_that_fits(engine: Engine) -> str:
    """As many words as leave room for a few tokens of a reply."""
    words = "one fox, "
    few, more = (engine.count_tokens(ask(words * count)) for count in (5, 10))
    each = (more - few) / 5
    return words * int((engine.context_window - 4 - few + 5 * each) / each)


def orders(engine: Engine) -> list[Order]:
    """Turns asked alone; and of each greedy one all that can be told of its shorter forms."""
    known = [Order(ask("word " * engine.context_window), make_params(), None)]
    for text in (*TEXTS, longest_that_fits(engine)):
        known += cut(ask(text), list(engine.generate(ask(text), make_params(), Abort())))
    for seed, text in enumerate(TEXTS[1:3]):
        params = make_params(temperature=1.0, top_p=0.9, seed=seed)
        chunks = list(engine.generate(ask(text), params, Abort()))
        known.append(Order(ask(text), params, text_of(chunks)))
    return known


def cut(prompt: Prompt, chunks: list[Chunk]) -> Iterator[Order]:
    """The whole reply; its beginning after each chunk; and up to pieces across their borders."""
    text = text_of(chunks)
    yield Order(prompt, make_params(stop=("never said", text[-1:] + "§")), text)
    counts = accumulate(chunk.token_count for chunk in chunks)
    for count, border in zip(counts, accumulate(chunk.text for chunk in chunks), strict=True):
        if count:
            yield Order(prompt, make_params(max_tokens=count), border)
        if stop := text[max(0, len(border) - 2) : len(border) + 3]:
            params = make_params(stop=("never said", stop))
            yield Order(prompt, params, text[: text.find(stop)])


def random_fate(chance: random.Random) -> Fate:
    if chance.random() < 0.6:
        return Fate()
    if chance.random() < 0.3:
        return Fate(seconds=chance.uniform(0, 0.5))
    return Fate(chunks=chance.randrange(4), leaves=chance.random() < 0.5)


def answer(engine: Engine, order: Order, lane: Lane, fate: Fate) -> bool:
    """Whether the turn came to its end. Its text is its own in any case."""
    abort = Abort()
    timer = threading.Timer(fate.seconds or 0, abort.set)
    if fate.seconds is not None:
        timer.start()
    prompt = Prompt(order.prompt.messages, lane=lane)
    reply = engine.generate(prompt, order.params, abort)
    chunks: list[Chunk] = []
    try:
        chunks += islice(reply, fate.chunks)
        if fate.leaves:
            reply.close()  # type: ignore[attr-defined]
        abort.set()
        chunks += reply
    except ContextOverflow:
        assert order.text is None
        return True
    finally:
        timer.cancel()
    has_ended = bool(chunks) and chunks[-1].finish_reason is not None
    assert order.text is not None or not chunks
    assert (order.text or "").startswith(text_of(chunks))
    if fate == Fate():
        assert has_ended
        assert text_of(chunks) == order.text
    return has_ended


def thread_count() -> int:
    return psutil.Process().num_threads()


def all_blocks_are_free(engine: Any) -> bool:
    """vLLM forgets what it remembers, unless turns still hold blocks; others have no such test."""
    front = getattr(getattr(engine, "_model", None), "scheduler", None)
    if not hasattr(front, "_llm"):
        return True
    all_free = front._llm.reset_prefix_cache()
    return bool(asyncio.run_coroutine_threadsafe(all_free, front._loop).result(60))


def storm(engine: Engine, count: int, eventually: Callable[..., None]) -> None:
    known = orders(engine)
    eventually(lambda: not any(engine.held.values()))
    threads = thread_count()
    chance = random.Random(SEED)
    turns = [
        (chance.choice(known), chance.choice((Lane.INTERACTIVE, Lane.BATCH)), random_fate(chance))
        for _ in range(count)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        ended = sum(pool.map(lambda turn: answer(engine, *turn), turns))
    assert ended > count / 2
    eventually(lambda: not any(engine.held.values()))
    eventually(lambda: thread_count() <= threads)
    eventually(lambda: all_blocks_are_free(engine))


def test_a_storm_of_odd_turns_leaves_nothing_behind(
    engine: Engine, request: pytest.FixtureRequest, eventually: Callable[..., None]
) -> None:
    name = request.node.callspec.params["make_engine"]
    storm(engine, storm_turns(DEFAULTS.get(name, FEW)), eventually)


def load_tiny_batch(_: EngineSettings) -> tuple[Any, Facts]:
    """Slots of a random model, with memory for two of the longest turns."""
    torch, transformers = import_module("torch"), import_module("transformers")
    slots: Any = import_module("turnmill.workers.engines.torch.slots")

    class Watched(slots.SlotBatch):  # type: ignore[misc]
        def step(self) -> None:
            super().step()
            assert self.is_busy or self.held_tokens <= 300

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    batch = Watched(model, frozenset({2}), slots.Limits(6, 300, prefill_tokens=16))
    return batch, Facts(context_window=128, vocabulary_size=256)


def load_tiny_text(_: EngineSettings) -> TextSide:
    """Its tokens are words and halves of emoji."""
    pieces = ["😀".encode()[:2], "😀".encode()[2:], b" hen", "é".encode()]
    return TextSide(
        template=ChatTemplate("{{ messages[-1].content }}"),
        encode=lambda text: list(text.encode() or b" "),
        decode=lambda ids: b"".join(pieces[each % 4] for each in ids).decode(errors="replace"),
    )


def test_a_storm_with_too_little_memory_leaves_nothing_behind(
    eventually: Callable[..., None],
) -> None:
    pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")
    schedule = partial(ChildScheduler, f"{__name__}:load_tiny_batch")
    engine = BatchingEngine(EngineSettings(), load_tiny_text, schedule)
    engine.start()
    try:
        storm(engine, storm_turns(SOME), eventually)
    finally:
        engine.close()

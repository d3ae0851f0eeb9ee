"""What the openvino engine does with the slots of its batch, step by step."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Lane
from turnmill.workers.engines.local.scheduling import Generation
from turnmill.workers.engines.openvino.namespaces import have_second_ids

openvino = pytest.importorskip(
    "turnmill.workers.engines.openvino.model", reason="pip install 'turnmill[openvino]'"
)
BATCH = "turnmill.workers.engines.openvino.batch"

GREEDY = GenerationParams(temperature=0)
MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()
SLOTS = 4


@pytest.fixture(scope="module")
def loaded() -> Any:
    # In 16 bits, rounding makes a reply depend on how its prompt was cut.
    settings = EngineSettings(
        name="openvino", models_dir=MODELS_DIR, max_batch_size=SLOTS, dtype="float32"
    )
    return openvino.load_batch(settings)[0]


@pytest.fixture
def batch(loaded: Any) -> Iterator[Any]:
    """A batch without turns. What the pipeline remembers of prompts is that of all tests."""
    batch = openvino.OpenVINOBatch(
        loaded._pipeline, SLOTS, loaded._step_tokens, loaded._blocks, loaded._namespaces
    )
    yield batch
    while batch.is_busy:  # or the pipeline complains of what it lost
        for request in (*batch._waiting, *batch._running):
            request.generation.is_unwanted = True
        batch.drop_unwanted()
        batch.step()


def admit(batch: Any, lane: Lane, count: int, limit: int = 500) -> list[Generation]:
    turns = [
        Generation(range(100 * n + 1, 100 * n + 21), limit, GREEDY, lane) for n in range(count)
    ]
    for turn in turns:
        batch.admit(turn)
    return turns


def running_count(batch: Any, turns: Sequence[Generation]) -> int:
    """How many of them a step generates a token for."""
    before = [turn.events.qsize() for turn in turns]
    batch.step()
    return sum(turn.events.qsize() > count for turn, count in zip(turns, before, strict=True))


def fill(batch: Any, backlog: Sequence[Generation], count: int) -> None:
    counts = [running_count(batch, backlog) for _ in range(count + 2)]
    assert counts[-1] == count


def test_the_batch_lane_has_all_slots_while_nobody_else_comes(batch: Any) -> None:
    backlog = admit(batch, Lane.BATCH, 6)
    counts = [running_count(batch, backlog) for _ in range(6)]
    assert counts == [1, 2, 3, 4, 4, 4], "one joins a step"


def test_an_interactive_turn_gets_its_first_token_in_the_next_step(batch: Any) -> None:
    backlog = admit(batch, Lane.BATCH, SLOTS)
    fill(batch, backlog, SLOTS)
    [asked] = admit(batch, Lane.INTERACTIVE, 1)
    assert running_count(batch, [*backlog, asked]) == 1, "the batch lane is left out"
    assert asked.events.qsize() == 1
    assert running_count(batch, [*backlog, asked]) == SLOTS, "one of the backlog is paused"


def test_a_slot_stays_free_while_interactive_turns_are_expected(
    batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog = admit(batch, Lane.BATCH, 6)
    fill(batch, backlog, SLOTS)
    admit(batch, Lane.INTERACTIVE, 1, limit=1)
    assert [running_count(batch, backlog) for _ in range(4)] == [0, *[SLOTS - 1] * 3]
    monkeypatch.setattr(f"{BATCH}.EXPECTED_S", 0.0)
    assert running_count(batch, backlog) == SLOTS


def test_no_step_computes_a_turn_that_was_dropped(batch: Any) -> None:
    backlog = admit(batch, Lane.BATCH, 3)
    fill(batch, backlog, 3)
    backlog[0].is_unwanted = True
    batch.drop_unwanted()
    assert batch.held["turns"] == 2
    batch.step()
    assert batch._pipeline.get_metrics().scheduled_requests == 2


def prompt(
    number: int,
    namespace: str,
    lane: Lane = Lane.INTERACTIVE,
    *,
    length: int = 400,
    limit: int = 6,
    params: GenerationParams = GREEDY,
) -> Generation:
    """Longer than what a step computes, unless the length is given."""
    ids = range(1_000 * number, 1_000 * number + length)
    return Generation(ids, limit, params, lane, namespace)


def interrupt(batch: Any, number: int) -> Generation:
    """A short interactive turn that wants one token."""
    turn = prompt(number, "", length=20, limit=1)
    batch.admit(turn)
    return turn


def test_no_two_steps_in_a_row_leave_the_batch_lane_out(batch: Any) -> None:
    backlog = admit(batch, Lane.BATCH, 2)
    fill(batch, backlog, 2)
    counts = []
    for number in range(20, 26):
        interrupt(batch, number)
        counts.append(running_count(batch, backlog))
    assert counts == [0, 2] * 3


def test_a_turn_that_cannot_be_put_back_as_it_was_is_in_every_step(batch: Any) -> None:
    seeded = GenerationParams(temperature=1, top_p=1, seed=1)
    penalized = GenerationParams(temperature=0, frequency_penalty=0.1)
    kinds = [(26, GREEDY), (27, seeded), (28, penalized)]
    backlog = [
        prompt(number, "", Lane.BATCH, length=20, limit=500, params=params)
        for number, params in kinds
    ]
    for turn in backlog:
        batch.admit(turn)
    fill(batch, backlog, len(backlog))
    interrupt(batch, 29)
    before = [turn.events.qsize() for turn in backlog]
    batch.step()
    gained = [turn.events.qsize() - old for turn, old in zip(backlog, before, strict=True)]
    assert gained == [0, 1, 1]


def test_turns_with_one_prompt_are_in_every_step_together(batch: Any) -> None:
    """Put back, they would write into one block of the cache."""
    backlog = [prompt(30, "", Lane.BATCH, length=20, limit=500) for _ in range(3)]
    for turn in backlog:
        batch.admit(turn)
    fill(batch, backlog, 3)
    interrupt(batch, 31)
    assert running_count(batch, backlog) == 3


def test_no_turn_is_taken_out_of_the_pipeline_while_the_cache_is_nearly_full(
    batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{BATCH}.MOST_CACHE_USED", -1.0)
    backlog = admit(batch, Lane.BATCH, 2)
    fill(batch, backlog, 2)
    interrupt(batch, 20)
    assert running_count(batch, backlog) == 2


def test_a_turn_that_is_left_out_of_a_step_may_be_cancelled_then(batch: Any) -> None:
    backlog = admit(batch, Lane.BATCH, 2)
    fill(batch, backlog, 2)
    interrupt(batch, 20)
    assert running_count(batch, backlog) == 0
    backlog[0].is_unwanted = True
    batch.drop_unwanted()
    assert batch.held["turns"] == 1
    assert running_count(batch, backlog[1:]) == 1


def test_a_reply_that_is_left_out_of_every_other_step_stays_the_same(batch: Any) -> None:
    alone = ask(batch, prompt(32, "alone", Lane.BATCH, length=100, limit=12))
    turn = prompt(32, "shared", Lane.BATCH, length=100, limit=12)
    batch.admit(turn)
    tokens: list[Any] = []
    while not tokens or tokens[-1].finish_reason is None:
        interrupt(batch, 20 + len(tokens))
        batch.step()
        while not turn.events.empty():
            tokens.append(turn.events.get())
    assert [token.id for token in tokens] == alone


def test_no_interactive_turn_waits_for_the_end_of_a_long_prompt(batch: Any) -> None:
    alone = ask(batch, prompt(33, "alone", Lane.BATCH, length=500))
    long = prompt(33, "shared", Lane.BATCH, length=500)
    batch.admit(long)
    batch.step()
    number = 34
    while long.events.empty():
        asked = interrupt(batch, number)
        batch.step()
        assert asked.events.qsize() == 1
        batch.step()
        number += 1
    assert number > 38, "the long prompt is computed meanwhile"
    assert reply(batch, long) == alone


def test_two_turns_that_continue_one_text_in_the_middle_of_a_block_spoil_no_reply(
    batch: Any,
) -> None:
    """A client that sends its history with two different questions at once."""
    text = [*range(15_000, 15_045)]

    def turns(namespace: str) -> list[Generation]:
        asked = [Generation([*text, last], 6, GREEDY, namespace=namespace) for last in (300, 9_000)]
        ask(batch, Generation(text, 1, GREEDY, namespace=namespace))
        return asked

    alone = [ask(batch, turns(f"alone {n}")[n]) for n in range(2)]
    both = turns("shared")
    for turn in both:
        batch.admit(turn)
    while batch.is_busy:
        batch.step()
    assert [[turn.events.get().id for _ in range(6)] for turn in both] == alone


def reply(batch: Any, turn: Generation) -> list[int]:
    """What is said to it, in as many steps as it takes."""
    tokens: list[Any] = []
    while not tokens or tokens[-1].finish_reason is None:
        batch.step()
        while not turn.events.empty():
            tokens.append(turn.events.get())
    return [token.id for token in tokens]


def ask(batch: Any, turn: Generation) -> list[int]:
    batch.admit(turn)
    return reply(batch, turn)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_prompt_whose_reader_leaves_in_its_middle_spoils_no_other_reply(
    batch: Any, steps: int
) -> None:
    alone = ask(batch, prompt(steps, "alone"))
    left = prompt(steps, "shared")
    batch.admit(left)
    for _ in range(steps):
        batch.step()
    left.is_unwanted = True
    batch.drop_unwanted()
    assert left.events.get() is None, "its reader waits no longer"
    assert ask(batch, prompt(steps, "shared")) == alone
    assert batch.held["turns"] == 0


def test_a_turn_that_makes_room_in_the_middle_of_its_prompt_spoils_no_reply(batch: Any) -> None:
    first = 10  # No other test has asked it.
    alone = ask(batch, prompt(first, "alone", Lane.BATCH))
    paused = prompt(first, "shared", Lane.BATCH)
    batch.admit(paused)
    batch.step()
    for number in range(first + 1, first + 1 + SLOTS):
        batch.admit(prompt(number, "shared"))
    assert reply(batch, paused) == alone
    assert ask(batch, prompt(first, "shared")) == alone


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_model_of_few_bits_keeps_the_prefixes_of_tenants_apart(quantization: str) -> None:
    settings = EngineSettings.model_validate(
        {"name": "openvino", "models_dir": MODELS_DIR, "quantization": quantization}
    )
    batch, _ = openvino.load_batch(settings)

    turns = [prompt(1, namespace) for namespace in ("one", "two", "one", "two")]
    replies = [ask(batch, turn) for turn in turns]
    assert replies == [replies[0]] * 4
    assert [turn.cached_tokens for turn in turns] == [0, 0, 384, 384]


@pytest.mark.parametrize("group", [128, 32], ids=["rows", "groups"])
@pytest.mark.parametrize("kind", ["u8", "i8", "u4", "i4"])
def test_a_table_of_embeddings_in_few_bits_has_second_ids(kind: str, group: int) -> None:
    """As exported models have them: a plugin looks such a table up with a kernel of its own."""
    look_up = _embeddings(kind, group)
    assert have_second_ids(ROWS, look_up)
    assert not have_second_ids(ROWS - 1, look_up)


ROWS, WIDTH = 1000, 128


@pytest.mark.parametrize(
    "said",
    [" Parcel 4711 of Ada, who isn't here: lost.", "我的包裹在哪里？", "的"],
    ids=["English", "Chinese", "without a border"],
)
def test_no_word_of_a_long_message_is_left_out(said: str) -> None:
    text_side = pytest.importorskip("turnmill.workers.engines.openvino.text_side")
    text = text_side.load_text(EngineSettings(name="openvino", models_dir=MODELS_DIR))
    tokens, few = text.encode(said * 30_000), text.encode(said * 300)
    assert text.decode(tokens) == said * 30_000
    assert len(tokens) == pytest.approx(100 * len(few), rel=0.01), (
        "where it was cut, it costs nothing"
    )


def _embeddings(kind: str, group: int) -> Callable[[list[int]], list[Any]]:
    """A table of random weights, with a scale (and, where unsigned, a zero) for each group."""
    import numpy
    from openvino import Core, Model, Type, opset13

    chance, bits = numpy.random.default_rng(0), int(kind[1])
    low, dtype = (0, numpy.uint8) if kind[0] == "u" else (-(2 ** (bits - 1)), numpy.int8)
    shape = (ROWS, WIDTH // group, group)

    def numbers(shape: tuple[int, ...]) -> Any:
        values = chance.integers(low, low + 2**bits, shape).astype(dtype)
        return opset13.convert(opset13.constant(values, getattr(Type, kind)), "f16")

    weights = numbers(shape)
    if kind[0] == "u":
        weights = opset13.subtract(weights, numbers((*shape[:2], 1)))
    scales = opset13.constant(chance.random((*shape[:2], 1)).astype(numpy.float16))
    table = opset13.multiply(weights, scales)
    flat = opset13.reshape(table, opset13.constant(numpy.array([ROWS, WIDTH])), False)
    ids = opset13.parameter([-1], numpy.int64)
    rows = opset13.gather(
        opset13.convert(flat, "f32"), opset13.convert(ids, "i32"), opset13.constant(0)
    )
    model = Core().compile_model(Model([rows], [ids]), "CPU")
    return lambda asked: model([numpy.array(asked)])[0].tolist()

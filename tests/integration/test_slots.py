"""Slots against plain `generate`, on tiny random models of several architectures."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from turnmill.schemas.errors import EngineFailure, EngineUnavailable, TurnmillError
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.batching import Generation, Token

torch = pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
transformers = pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")
slots = pytest.importorskip("turnmill.workers.engines.slots")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GREEDY = GenerationParams(temperature=0, top_p=1, max_tokens=12)
PROMPTS = [[5, 6, 7], list(range(3, 40)), [9], [11, 12, 13, 14, 15], list(range(50, 62))]


def make_model(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=2
        )
    elif kind == "mistral-sliding":
        config = transformers.MistralConfig(**SIZES, sliding_window=8)
    else:
        config = transformers.LlamaConfig(**SIZES)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def generation(ids: list[int], params: GenerationParams = GREEDY, limit: int = 12) -> Generation:
    return Generation(ids, limit, params, threading.Event())


def events_of(each: Generation) -> list[Token | TurnmillError | None]:
    events = []
    while not each.events.empty():
        events.append(each.events.get())
    return events


def tokens_of(each: Generation) -> list[int]:
    return [event.id for event in events_of(each) if isinstance(event, Token)]


def run(batch: Any, arrivals: Sequence[Generation]) -> None:
    """One turn arrives every other step."""
    waiting = list(arrivals)
    steps = 0
    while batch.is_busy or waiting:
        if waiting and steps % 2 == 0:
            batch.admit(waiting.pop(0))
        batch.step()
        steps += 1
        assert steps < 500


def plain(model: Any, ids: list[int]) -> list[int]:
    inputs = torch.tensor([ids])
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral-sliding"])
def test_a_turn_among_others_equals_plain_generate(kind: str) -> None:
    model = make_model(kind)
    turns = [generation(ids) for ids in PROMPTS]
    run(slots.SlotBatch(model, frozenset({2}), 4, 10_000), turns)
    replies = [tokens_of(turn) for turn in turns]
    assert replies == [plain(model, ids) for ids in PROMPTS]
    assert max(map(len, replies)) == 12


def test_neighbours_do_not_shift_what_a_seed_draws() -> None:
    model = make_model("llama")
    params = GenerationParams(temperature=1.0, top_p=0.9, max_tokens=12, seed=5)
    alone, among = generation([5, 6], params), generation([5, 6], params)
    run(slots.SlotBatch(model, frozenset({2}), 4, 10_000), [alone])
    others = [generation(ids, params.model_copy(update={"seed": 9})) for ids in PROMPTS]
    run(slots.SlotBatch(model, frozenset({2}), 4, 10_000), [*others[:2], among, *others[2:]])
    assert tokens_of(alone) == tokens_of(among)


def test_a_full_cache_makes_turns_wait_not_fail() -> None:
    model = make_model("llama")
    turns = [generation(ids) for ids in PROMPTS]
    run(slots.SlotBatch(model, frozenset({2}), 4, 60), turns)
    assert [tokens_of(turn) for turn in turns] == [plain(model, ids) for ids in PROMPTS]


def test_an_aborted_turn_leaves_its_slot_to_others() -> None:
    batch = slots.SlotBatch(make_model("llama"), frozenset(), 2, 10_000)
    stays, goes, comes = (generation(ids) for ids in PROMPTS[:3])
    for each in (goes, stays, comes):
        batch.admit(each)
    batch.step()
    batch.step()
    goes.abort.set()
    run(batch, [])
    assert events_of(goes)[-1] is None
    assert len(tokens_of(stays)) == len(tokens_of(comes)) == 12


class FailingModel:
    """Passes calls on until it is to fail."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self.fails_when: Any = lambda inputs: None

    def __call__(self, **inputs: Any) -> Any:
        if error := self.fails_when(inputs["input_ids"]):
            raise error
        return self.model(**inputs)


def test_a_prompt_that_cannot_be_computed_fails_alone() -> None:
    model = FailingModel(make_model("llama"))
    model.fails_when = lambda ids: RuntimeError("bad") if ids.shape[1] == 3 else None
    bad, good = generation(PROMPTS[0]), generation(PROMPTS[1])
    run(slots.SlotBatch(model, frozenset({2}), 4, 10_000), [bad, good])
    assert isinstance(events_of(bad)[-1], EngineFailure)
    assert tokens_of(good) == plain(model.model, PROMPTS[1])


def test_memory_running_out_costs_the_newest_turn_only() -> None:
    model = FailingModel(make_model("llama"))
    failures = [torch.OutOfMemoryError()]
    model.fails_when = lambda ids: failures.pop() if ids.shape[0] == 3 and failures else None
    turns = [generation(ids) for ids in PROMPTS[:3]]
    run(slots.SlotBatch(model, frozenset(), 4, 10_000), turns)
    assert isinstance(events_of(turns[2])[-1], EngineUnavailable)
    alone = [generation(ids) for ids in PROMPTS[:2]]
    for each in alone:
        run(slots.SlotBatch(model, frozenset(), 4, 10_000), [each])
    assert [tokens_of(turn) for turn in turns[:2]] == [tokens_of(turn) for turn in alone]


def test_the_nucleus_holds_the_likeliest_tokens_only() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    params = GenerationParams(temperature=1.0, top_p=0.7)
    generator = torch.Generator().manual_seed(1)
    drawn = {slots.sample(logits, params, generator) for _ in range(200)}
    assert drawn == {0, 1}

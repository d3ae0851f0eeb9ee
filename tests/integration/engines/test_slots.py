"""Slots against plain `generate`, on tiny random models of several architectures."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import structlog

from turnmill.schemas.errors import EngineBrokeOff, EngineFailure, InvalidInput, TurnmillError
from turnmill.schemas.turns import GenerationParams, Lane
from turnmill.workers.engines.local.scheduling import Generation, Token

torch = pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
transformers = pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")
slots = import_module("turnmill.workers.engines.torch.slots")
cpu_attention = import_module("turnmill.workers.engines.torch.cpu_attention")
cpu_linear = import_module("turnmill.workers.engines.torch.cpu_linear")
memory = import_module("turnmill.workers.engines.torch.memory")
sampling = import_module("turnmill.workers.engines.torch.sampling")

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
    return Generation(ids, limit, params)


def events_of(each: Generation) -> list[Token | TurnmillError | None]:
    events = []
    while not each.events.empty():
        events.append(each.events.get())
    return events


def tokens_of(each: Generation) -> list[int]:
    return [event.id for event in events_of(each) if isinstance(event, Token)]


def make_batch(
    model: Any, ends: frozenset[int], max_slots: int, max_cached_tokens: int, **limits: Any
) -> Any:
    return slots.SlotBatch(model, ends, slots.Limits(max_slots, max_cached_tokens, **limits))


def run(batch: Any, arrivals: Sequence[Generation]) -> None:
    """One turn arrives every other step."""
    waiting = list(arrivals)
    steps = 0
    while batch.is_busy or waiting:
        if waiting and steps % 2 == 0:
            batch.admit(waiting.pop(0))
        batch.step()
        steps += 1
        assert steps < 20_000


def plain(model: Any, ids: list[int], **options: Any) -> list[int]:
    inputs = torch.tensor([ids])
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral-sliding"])
def test_a_turn_among_others_equals_plain_generate(kind: str) -> None:
    model = make_model(kind)
    turns = [generation(ids) for ids in PROMPTS]
    run(make_batch(model, frozenset({2}), 4, 10_000), turns)
    replies = [tokens_of(turn) for turn in turns]
    assert replies == [plain(model, ids) for ids in PROMPTS]
    assert max(map(len, replies)) == 12


def test_neighbours_do_not_shift_what_a_seed_draws() -> None:
    model = make_model("llama")
    params = GenerationParams(temperature=1.0, top_p=0.9, max_tokens=12, seed=5)
    alone, among = generation([5, 6], params), generation([5, 6], params)
    run(make_batch(model, frozenset({2}), 4, 10_000), [alone])
    others = [generation(ids, params.model_copy(update={"seed": 9})) for ids in PROMPTS]
    run(make_batch(model, frozenset({2}), 4, 10_000), [*others[:2], among, *others[2:]])
    assert tokens_of(alone) == tokens_of(among)


def test_a_full_cache_makes_turns_wait_not_fail() -> None:
    model = make_model("llama")
    turns = [generation(ids) for ids in PROMPTS]
    run(make_batch(model, frozenset({2}), 4, 60), turns)
    assert [tokens_of(turn) for turn in turns] == [plain(model, ids) for ids in PROMPTS]


def test_an_aborted_turn_leaves_its_slot_to_others() -> None:
    batch = make_batch(make_model("llama"), frozenset(), 2, 10_000)
    stays, goes, comes = (generation(ids) for ids in PROMPTS[:3])
    for each in (goes, stays, comes):
        batch.admit(each)
    batch.step()
    batch.step()
    goes.is_unwanted = True
    batch.drop_unwanted()
    run(batch, [])
    assert events_of(goes)[-1] is None
    assert len(tokens_of(stays)) == len(tokens_of(comes)) == 12


class FailingModel:
    """Passes calls on until it is to fail."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.fails_when: Any = lambda inputs: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        if error := self.fails_when(inputs["input_ids"]):
            raise error
        return self.model(**inputs)


def test_a_prompt_that_cannot_be_computed_fails_alone() -> None:
    model = FailingModel(make_model("llama"))
    model.fails_when = lambda ids: RuntimeError("bad") if ids.shape[1] == 3 else None
    bad, good = generation(PROMPTS[0]), generation(PROMPTS[1])
    run(make_batch(model, frozenset({2}), 4, 10_000), [bad, good])
    assert isinstance(events_of(bad)[-1], EngineFailure)
    assert tokens_of(good) == plain(model.model, PROMPTS[1])


def test_when_memory_runs_out_the_newest_turn_waits_for_the_others() -> None:
    model = FailingModel(make_model("llama"))
    failures = [torch.OutOfMemoryError()]
    model.fails_when = lambda ids: failures.pop() if ids.shape[0] == 3 and failures else None
    turns = [generation(ids) for ids in PROMPTS[:4]]
    run(make_batch(model, frozenset(), 4, 10_000), turns)
    assert not failures
    alone = [generation(ids) for ids in PROMPTS[:4]]
    for each in alone:
        run(make_batch(model, frozenset(), 4, 10_000), [each])
    assert [tokens_of(turn) for turn in turns] == [tokens_of(turn) for turn in alone]


def test_after_memory_ran_out_the_batch_grows_back_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "QUIET_STEPS", 4)
    model = FailingModel(make_model("llama"))
    failures = [torch.OutOfMemoryError(), torch.OutOfMemoryError()]
    sizes = [0]

    def fail(ids: Any) -> Exception | None:
        if ids.shape[0] >= 3 and failures:
            return failures.pop()
        sizes.append(ids.shape[0])
        return None

    model.fails_when = fail
    batch = make_batch(model, frozenset(), 4, 10_000)
    with structlog.testing.capture_logs() as logs:
        run(batch, [generation(PROMPTS[0], limit=60) for _ in range(4)])
    assert not failures
    shortages = [line for line in logs if line["event"] == "engine.out_of_memory"]
    assert [line["times"] for line in shortages] == [1, 2]
    grown = [line["turns_at_once"] for line in logs if line["event"] == "engine.grown_back"]
    assert grown == [3, 3, 4]
    assert max(sizes) == 4


def test_a_turn_for_which_memory_does_not_even_suffice_alone_may_come_again() -> None:
    model = FailingModel(make_model("llama"))
    model.fails_when = lambda ids: torch.OutOfMemoryError()
    turn = generation(PROMPTS[0])
    run(make_batch(model, frozenset({2}), 4, 10_000), [turn])
    assert isinstance(events_of(turn)[-1], EngineBrokeOff)


@pytest.mark.parametrize("kind", ["llama", "mistral-sliding"])
def test_a_prompt_is_computed_in_pieces_to_the_same_end(kind: str) -> None:
    model = make_model(kind)
    turns = [generation(ids) for ids in PROMPTS]
    run(make_batch(model, frozenset({2}), 4, 10_000, prefill_tokens=5), turns)
    assert [tokens_of(turn) for turn in turns] == [plain(model, ids) for ids in PROMPTS]


def computed_by(model: FailingModel) -> list[int]:
    """Grows by the number of prompt tokens of each pass over more than one token."""
    counts: list[int] = []
    model.fails_when = lambda ids: counts.append(ids.shape[1]) if ids.shape[1] > 1 else None
    return counts


def test_a_conversation_goes_on_without_computing_its_past_again() -> None:
    model = FailingModel(make_model("llama"))
    computed = computed_by(model)
    batch = make_batch(model, frozenset(), 4, 10_000)
    past, first = PROMPTS[1], generation(PROMPTS[1])
    run(batch, [first])
    past = [*past, *tokens_of(first)]
    second = generation([*past, 60, 61, 62])
    run(batch, [second])
    # The last token of the reply was never fed back.
    assert second.cached_tokens == len(past) - 1
    assert computed == [len(PROMPTS[1]), 4]
    fresh = generation(second.prompt_ids)
    run(make_batch(model.model, frozenset(), 4, 10_000, reuses_prefixes=False), [fresh])
    assert tokens_of(second) == tokens_of(fresh)
    assert fresh.cached_tokens == 0


def test_conversations_that_take_turns_alone_keep_what_is_theirs() -> None:
    """Each goes on in the memory it had; one that only begins like another leaves that alone."""
    model = make_model("llama")
    batch = make_batch(model, frozenset(), 4, 10_000)
    pasts = [PROMPTS[1], [*PROMPTS[1][:20], 90, 91], PROMPTS[4]]
    for round_ in range(8):
        for at, past in enumerate(pasts):
            turn = generation([*past, 60 + round_, 61, 62], limit=4)
            run(batch, [turn])
            fresh = generation(turn.prompt_ids, limit=4)
            run(make_batch(model, frozenset(), 4, 10_000, reuses_prefixes=False), [fresh])
            tokens = tokens_of(turn)
            assert tokens == tokens_of(fresh)
            if round_:
                assert turn.cached_tokens == len(past) - 1
            pasts[at] = [*turn.prompt_ids, *tokens]
    assert batch.held["rows"] == 0


@pytest.mark.parametrize(("most", "has_room"), [(10_000, True), (300, False)])
def test_a_conversation_has_room_for_its_next_turn_before_that_comes(
    most: int, has_room: bool
) -> None:
    batch = make_batch(make_model("llama"), frozenset(), 4, most)
    turn = generation([*range(3, 90)])
    for _ in range(2):
        run(batch, [turn])
        turn = generation([*turn.prompt_ids, *tokens_of(turn), *range(10, 80)])
    assert (batch.held_tokens >= len(turn.prompt_ids) + turn.limit) is has_room
    assert batch.held_tokens <= most


def test_what_is_remembered_of_a_turn_that_was_alone_is_counted_with_its_room_to_grow() -> None:
    batch = make_batch(make_model("llama"), frozenset(), 4, 600)
    for start in range(3, 90, 10):
        run(batch, [generation([start, *PROMPTS[1]])])
        assert batch.held_tokens <= 600
    assert batch.held_tokens > 0


def test_a_system_prompt_is_computed_once_for_turns_that_run_together() -> None:
    model = FailingModel(make_model("llama"))
    computed = computed_by(model)
    system = list(range(20, 60))
    turns = [generation([*system, 3 + number, 7]) for number in range(4)]
    batch = make_batch(model, frozenset({2}), 4, 10_000)
    for turn in turns:
        batch.admit(turn)
    run(batch, [])
    assert [turn.cached_tokens for turn in turns] == [0, 40, 40, 40]
    assert computed == [42, 2, 2, 2]
    assert [tokens_of(turn) for turn in turns] == [
        plain(model.model, turn.prompt_ids) for turn in turns
    ]


def test_an_interactive_turn_takes_the_slot_of_a_batch_turn_which_goes_on_later() -> None:
    model = make_model("llama")
    batch = make_batch(model, frozenset({2}), 2, 10_000)
    slow = [generation(ids) for ids in PROMPTS[:3]]
    for turn in slow:
        turn.lane = Lane.BATCH
        batch.admit(turn)
    batch.step()
    batch.step()
    urgent = generation(PROMPTS[3])
    batch.admit(urgent)
    batch.step()
    assert len(tokens_of(urgent)) == 1
    run(batch, [])
    assert [tokens_of(turn) for turn in slow] == [plain(model, ids) for ids in PROMPTS[:3]]


@pytest.mark.parametrize("kind", ["llama", "mistral-sliding"])
def test_shared_heads_that_are_not_written_out_answer_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_replies = [plain(make_model(kind), ids) for ids in PROMPTS]
    masked = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> Any:
        masked.append(mask is not None and query.shape[2] > 1 and query.shape[1] > key.shape[1])
        return cpu_attention.attend(module, query, key, value, mask, **settings)

    functions = transformers.AttentionInterface._global_mapping
    monkeypatch.setitem(functions, "sdpa", attend)
    turns = [generation(ids) for ids in PROMPTS]
    run(make_batch(make_model(kind), frozenset({2}), 4, 10_000, prefill_tokens=5), turns)
    assert [tokens_of(turn) for turn in turns] == plain_replies
    assert any(masked)


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("shared", [3, 9])
def test_a_few_bfloat16_tokens_after_a_long_past_get_what_torchs_own_attention_says(
    shared: int, has_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "HAS_AMX", has_amx)
    torch.manual_seed(1)
    new, columns = 20, 600
    query = torch.randn(1, new, 9, 64).transpose(1, 2)
    key, value = torch.randn(2, 1, shared, columns, 64)
    hidden = torch.arange(columns) > torch.arange(columns - new, columns)[:, None]
    mask = torch.zeros(1, 1, new, columns).masked_fill_(hidden, torch.finfo(torch.bfloat16).min)
    states = [each.bfloat16() for each in (query, key, value, mask)]
    attended, _ = cpu_attention.attend(None, *states, scaling=0.125)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.125, enable_gqa=True
    )
    error = (attended.float() - wanted.transpose(1, 2)).abs()
    assert attended.shape == (1, new, 9, 64)
    assert error.max() < 0.02
    assert error.mean() < 0.002


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_linear_layers_answer_the_same(kind: str) -> None:
    model = make_model(kind)
    packed_replies = [generation(ids) for ids in PROMPTS]
    cpu_linear.pack_linears(model)
    assert isinstance(model.lm_head, cpu_linear.PackedLinear)
    run(make_batch(model, frozenset({2}), 4, 10_000), packed_replies)
    plain_replies = [plain(make_model(kind), ids) for ids in PROMPTS]
    assert [tokens_of(turn) for turn in packed_replies] == plain_replies


def test_linear_layers_in_bfloat16_are_packed_where_the_cpu_multiplies_such() -> None:
    plain_layer = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    layers = torch.nn.Sequential(plain_layer)
    cpu_linear.pack_linears(layers)
    is_packed = isinstance(layers[0], cpu_linear.PackedLinear)
    assert is_packed == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    states = torch.randn(3, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(layers(states), plain_layer(states))


def test_torchs_packed_products_take_what_they_are_given() -> None:
    """They have no public name, and no source in Python to compare (workers/vendor/torch.py)."""
    operators = torch.ops.mkldnn
    assert str(operators._reorder_linear_weight.default._schema) == (
        "mkldnn::_reorder_linear_weight(Tensor self, int? batch_size=None) -> Tensor Y"
    )
    assert str(operators._linear_pointwise.default._schema) == (
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars,"
        " str? algorithm) -> Tensor Y"
    )


def test_linear_layers_in_float16_stay_as_they_are() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float16))
    cpu_linear.pack_linears(layers)
    assert type(layers[0]) is torch.nn.Linear


def test_the_nucleus_holds_the_likeliest_tokens_only() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    params = GenerationParams(temperature=1.0, top_p=0.7)
    generator = torch.Generator().manual_seed(1)
    drawn = {sampling.sample(logits, params, generator) for _ in range(200)}
    assert drawn == {0, 1}


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"min_p": 0.5}, {"top_k": 3, "top_p": 0.8}])
def test_unlikely_tokens_are_never_drawn(cut: dict[str, float]) -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    params = GenerationParams(temperature=1.0, **cut)
    generator = torch.Generator().manual_seed(1)
    drawn = {sampling.sample(logits, params, generator) for _ in range(200)}
    assert drawn == {0, 1}


def test_a_penalty_on_repetition_equals_that_of_plain_generate() -> None:
    model = make_model("llama")
    params = GREEDY.model_copy(update={"repetition_penalty": 1.3})
    turns = [generation(ids, params) for ids in PROMPTS]
    run(make_batch(model, frozenset({2}), 4, 10_000), turns)
    expected = [plain(model, ids, repetition_penalty=1.3) for ids in PROMPTS]
    assert [tokens_of(turn) for turn in turns] == expected
    assert expected != [plain(model, ids) for ids in PROMPTS]


def greedily(model: Any, ids: list[int], presence: float, frequency: float) -> list[int]:
    """The reply by OpenAI's formula: mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
    said: list[int] = []
    with torch.inference_mode():
        while len(said) < 12 and 2 not in said:
            scores = model(torch.tensor([[*ids, *said]])).logits[0, -1]
            counts = torch.bincount(torch.tensor(said, dtype=torch.long), minlength=97)
            scores = scores - counts * frequency - (counts > 0) * presence
            said.append(int(scores.argmax()))
    return said


def test_what_a_reply_says_again_is_penalized_as_openai_has_it() -> None:
    model = make_model("llama")
    for presence, frequency in ((1.5, 0.0), (0.0, 0.02), (0.03, -0.02)):
        more = {"presence_penalty": presence, "frequency_penalty": frequency}
        turns = [generation(ids, GREEDY.model_copy(update=more)) for ids in PROMPTS]
        run(make_batch(model, frozenset({2}), 4, 10_000), turns)
        expected = [greedily(model, ids, presence, frequency) for ids in PROMPTS]
        assert [tokens_of(turn) for turn in turns] == expected
        assert expected != [plain(model, ids) for ids in PROMPTS]


def test_tokens_are_made_likelier_and_banned_by_their_ids() -> None:
    model = make_model("llama")
    first = plain(model, PROMPTS[0])[0]
    more = {"temperature": 1.0, "logit_bias": {41: 100.0}}
    forced = generation(PROMPTS[0], GREEDY.model_copy(update=more))
    banned = generation(PROMPTS[0], GREEDY.model_copy(update={"logit_bias": {first: -100.0}}))
    neighbour = generation(PROMPTS[0])
    batch = make_batch(model, frozenset({2}), 4, 10_000)
    run(batch, [forced, banned, neighbour])
    assert set(tokens_of(forced)) == {41}
    assert first not in tokens_of(banned)
    assert tokens_of(neighbour) == plain(model, PROMPTS[0])
    with pytest.raises(InvalidInput, match="97 tokens"):
        batch.admit(generation([3], GREEDY.model_copy(update={"logit_bias": {97: 1.0}})))


def test_log_probabilities_are_those_of_the_model_whatever_is_drawn() -> None:
    model = make_model("llama")
    params = GREEDY.model_copy(update={"logprobs": 3, "temperature": 2.0, "logit_bias": {41: 5.0}})
    turn, silent = generation(PROMPTS[1], params), generation(PROMPTS[1])
    run(make_batch(model, frozenset({2}), 4, 10_000), [turn, silent])
    said: list[int] = []
    for token in events_of(turn):
        assert isinstance(token, Token)
        (own, logprob), *top = token.logprobs
        assert own == token.id
        with torch.inference_mode():
            scores = model(torch.tensor([[*PROMPTS[1], *said]])).logits[0, -1]
        expected = torch.log_softmax(scores, dim=-1)
        assert logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [id for id, _ in top] == expected.topk(3).indices.tolist()
        assert [each for _, each in top] == pytest.approx(
            expected.topk(3).values.tolist(), abs=1e-4
        )
        said.append(token.id)
    assert all(isinstance(each, Token) and each.logprobs == () for each in events_of(silent))


@pytest.mark.parametrize("is_running", [False, True])
def test_a_turn_takes_nothing_from_another_namespace(is_running: bool) -> None:
    """Neither from turns that have ended nor from one beside it."""
    model = make_model("llama")
    batch = make_batch(model, frozenset({2}), 4, 10_000)
    prompt = list(range(3, 43))
    first = Generation(prompt, 12, GREEDY, namespace="one")
    run(batch, [first])
    others = [Generation(prompt, 12, GREEDY, namespace=name) for name in ("two", "one", "two")]
    if is_running:
        run(batch, others)
    else:
        for turn in others:
            run(batch, [turn])
    assert [turn.cached_tokens for turn in (first, *others)] == [0, 0, 39, 39]
    replies = [tokens_of(turn) for turn in (first, *others)]
    assert replies == [replies[0]] * 4

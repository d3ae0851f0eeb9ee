"""The step `quantize` on a tiny random Llama: methods, packed layers, folders that load."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from turnmill.compression.calibration import Stage, linears_of, run_layers  # noqa: E402
from turnmill.compression.quantize.affine import Grid, PackedWeight  # noqa: E402
from turnmill.compression.quantize.folding import fold  # noqa: E402
from turnmill.compression.quantize.layers import (  # noqa: E402
    Int4Linear,
    Int8Linear,
    W8A8Linear,
    is_right,
    pack_linears,
)
from turnmill.compression.quantize.rtn import round_to_nearest  # noqa: E402
from turnmill.compression.quantize.save import save_compressed_tensors, save_quantized  # noqa: E402
from turnmill.compression.quantize.step import (  # noqa: E402
    Quantize,
    QuantizeOptions,
    calibration_windows,
)
from turnmill.compression.step import Silent, State  # noqa: E402
from turnmill.schemas.errors import InvalidInput  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=WINDOWS, use_cache=False).logits.float()


def divergence(model: Any, original: Any) -> float:
    """Return the mean KL divergence of the model's next tokens from the original's, nats."""
    mine, theirs = (logits(each).log_softmax(-1) for each in (model, original))
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def state_of(model: Any, texts: Any, tokenizer: Any, folder: Path) -> State:
    return State(model, tokenizer, texts, lambda: model, folder, seed=1)


def load(folder: Path, dtype: Any = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"}).eval()


@pytest.fixture
def run(tiny_llama: Any, tiny_texts: Any, tiny_tokenizer: Any, tmp_path: Path) -> Any:
    def quantize(**options: Any) -> State:
        state = state_of(tiny_llama, tiny_texts, tiny_tokenizer, tmp_path)
        state.told = Quantize()(state, QuantizeOptions(**options), Silent())  # type: ignore[attr-defined]
        return state

    return quantize


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "awq-gptq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_model_holds_its_integers_dequantized(run: Any, method: str, bits: int) -> None:
    state = run(method=method, bits=bits)
    assert state.format == f"int{bits}"
    for name, linear in linears_of(state.model).items():
        assert torch.equal(linear.weight, state.packed[name].dense())
    assert set(state.told["errors"]) == set(state.packed)


def test_methods_with_calibration_lose_less_than_rounding(
    tiny_llama_maker: Any, tiny_texts: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    errors = {}
    for method in ("rtn", "gptq", "awq-gptq"):
        model = tiny_llama_maker()
        state = state_of(model, tiny_texts, tiny_tokenizer, tmp_path)
        Quantize()(state, QuantizeOptions(method=method, bits=4), Silent())
        with torch.no_grad():
            ids = tiny_texts.calibration
            mine, theirs = (each(ids).logits for each in (model, tiny_llama_maker()))
            errors[method] = float((mine - theirs).square().mean())
    assert errors["gptq"] < 0.8 * errors["rtn"]
    assert errors["awq-gptq"] < 0.8 * errors["rtn"]


class _Interrupted(Exception):
    pass


class _Recording(Silent):
    """Keeps what a step reports; ends the step once so many layers were reported, if told to."""

    def __init__(self, end_after: int | None = None) -> None:
        self.said: list[tuple[str, float]] = []
        self._end_after = end_after

    def start(self, total: float, label: str) -> None:
        self.said.append(("start", total))

    def advance(self, done: float = 1) -> None:
        self.said.append(("advance", done))
        if sum(number for what, number in self.said if what == "advance") == self._end_after:
            raise _Interrupted


@pytest.mark.parametrize("method", ["gptq", "awq-gptq", "smoothquant"])
def test_an_interrupted_step_resumes_after_its_last_finished_layer(
    tiny_llama_maker: Any, tiny_texts: Any, tiny_tokenizer: Any, tmp_path: Path, method: str
) -> None:
    options = QuantizeOptions(method=method)

    def run(folder: str, progress: _Recording) -> tuple[State, Any]:
        model = tiny_llama_maker(layers=3)
        state = state_of(model, tiny_texts, tiny_tokenizer, tmp_path / folder)
        return state, Quantize()(state, options, progress)

    whole, told = run("whole", _Recording())
    with pytest.raises(_Interrupted):
        run("interrupted", _Recording(end_after=2))
    progress = _Recording()
    resumed, told_again = run("interrupted", progress)

    assert progress.said == [("start", 3), ("advance", 2), ("advance", 1)]
    assert told_again == told
    assert list(resumed.packed) == list(whole.packed)
    for name, packed in whole.packed.items():
        assert torch.equal(resumed.packed[name].integers, packed.integers)
        assert torch.equal(resumed.packed[name].scales, packed.scales)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_finished_layers_of_other_options_are_not_used(
    tiny_llama_maker: Any, tiny_texts: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    for bits in (4, 8):
        state = state_of(tiny_llama_maker(), tiny_texts, tiny_tokenizer, tmp_path)
        progress = _Recording()
        Quantize()(state, QuantizeOptions(bits=bits), progress)
        assert progress.said[:2] == [("start", 2), ("advance", 0)]


def test_the_models_own_text_joins_the_dialogues_to_calibrate_on(run: Any, tmp_path: Path) -> None:
    state = run(method="gptq", bits=4, generated=2)
    windows = calibration_windows(state, 2, Silent())
    assert len(windows) == len(state.texts.calibration) + 2
    assert torch.equal(windows[:-2], state.texts.calibration)


def test_eight_bits_cost_almost_nothing(run: Any, tiny_llama_maker: Any) -> None:
    assert divergence(run(method="rtn", bits=8).model, tiny_llama_maker()) < 1e-3


@pytest.mark.parametrize("stage_of", ["q_proj", "gate_proj", "down_proj"])
def test_folding_changes_the_weights_and_not_the_model(
    tiny_llama: Any, tiny_llama_maker: Any, stage_of: str
) -> None:
    folded = []

    def visit(stage: Stage) -> None:
        if next(iter(stage.linears)).endswith(stage_of):
            random = torch.Generator().manual_seed(3)
            folded.append(fold(stage, torch.rand(len(stage.inputs.absmax), generator=random) + 0.5))

    run_layers(tiny_llama, WINDOWS, visit)
    assert folded == [True, True]
    assert torch.allclose(logits(tiny_llama), logits(tiny_llama_maker()), atol=1e-4)


def test_heads_that_share_keys_are_not_folded(tiny_llama: Any) -> None:
    folded = []

    def visit(stage: Stage) -> None:
        if next(iter(stage.linears)).endswith("o_proj"):
            folded.append(fold(stage, torch.full_like(stage.inputs.absmax, 2)))

    run_layers(tiny_llama, WINDOWS, visit)
    assert folded == [False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("grid", "kind", "int8_activations"),
    [
        (Grid(8), Int8Linear, False),
        (Grid(8, group="tensor"), Int8Linear, False),
        (Grid(4, True, 64), Int4Linear, False),
        (Grid(4, False, 32), Int4Linear, False),
        (Grid(8), W8A8Linear, True),
    ],
    ids=str,
)
def test_packed_layers_multiply_like_the_dequantized_matrix(
    grid: Grid, kind: type, int8_activations: bool, dtype: Any
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(128, 96)).to(dtype)
    packed = round_to_nearest(model[0].weight.detach(), grid)
    left = pack_linears(model, {"0": packed}, int8_activations=int8_activations)
    assert left == []
    assert isinstance(model[0], kind)
    assert model[0](torch.randn(2, 3, 128, dtype=dtype)).shape == (2, 3, 96)


def test_a_layer_that_multiplies_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(128, 96))
    packed = round_to_nearest(model[0].weight.detach(), Grid(8))
    layer = Int8Linear(packed, model[0].bias.detach(), torch.float32)
    layer.scales.mul_(1.05)
    assert not is_right(layer, packed, model[0].bias.detach(), torch.float32)
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *_: torch.zeros(4, 96))
    assert pack_linears(model, {"0": packed}) == ["0"]
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert pack_linears(model, {"0": packed}) == ["0"]
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.parametrize("bits", [4, 8])
def test_a_saved_folder_loads_in_transformers_with_equal_logits(
    run: Any, tmp_path: Path, bits: int
) -> None:
    state = run(method="gptq", bits=bits)
    save_quantized(state, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(state.model))
    left = pack_linears(state.model, state.packed)
    assert left == []
    assert torch.allclose(logits(load(tmp_path / "saved")), logits(state.model), atol=1e-3)


def test_a_saved_w8a8_folder_rounds_activations_like_our_own_layers(
    run: Any, tiny_llama_maker: Any, tmp_path: Path
) -> None:
    state = run(method="smoothquant")
    assert state.format == "w8a8"
    save_quantized(state, tmp_path / "saved")
    weights_only = logits(state.model)
    assert pack_linears(state.model, state.packed, int8_activations=True) == []
    loaded = load(tmp_path / "saved")
    ours, theirs = logits(state.model), logits(loaded)
    # Ties of an activation between two integers may fall either way.
    assert float((ours - theirs).square().mean()) < 0.3 * float(
        (weights_only - theirs).square().mean()
    )
    assert divergence(loaded, tiny_llama_maker()) < 0.02


@pytest.mark.parametrize("method", ["bnb-int8", "bnb-nf4"])
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
def test_bitsandbytes_quantizes_and_saves_its_own_formats(
    run: Any, tiny_llama_maker: Any, tmp_path: Path, method: str
) -> None:
    state = run(method=method)
    assert state.packed == {}
    state.model.to(torch.bfloat16)
    save_quantized(state, tmp_path / "saved")
    loaded = load(tmp_path / "saved", torch.bfloat16)
    assert loaded.config.quantization_config.quant_method == "bitsandbytes"
    assert divergence(loaded, tiny_llama_maker()) < 0.3


def test_the_saved_size_is_what_the_bits_say(run: Any, tmp_path: Path) -> None:
    state = run(method="rtn", bits=4)
    others = sum(
        2 * p.numel()
        for n, p in state.model.named_parameters()
        if n.removesuffix(".weight") not in state.packed
    )
    state.model.to(torch.bfloat16)
    save_quantized(state, tmp_path / "saved")
    file = (tmp_path / "saved" / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes(
        (tmp_path / "saved" / "model.safetensors").read_bytes()[:8], "little"
    )
    shapes = 16 * len(state.packed)
    assert file - header - shapes == others + state.told["bytes"]


def test_groups_that_do_not_divide_a_layer_are_refused_before_work(run: Any) -> None:
    with pytest.raises(InvalidInput, match=r"Groups of 48 weights do not divide the 64 inputs of"):
        run(method="gptq", group=48)


@pytest.mark.parametrize(
    "options",
    [
        {"activations": 8, "bits": 4},
        {"activations": 8, "bits": 8, "group": 32},
        {"method": "smoothquant", "group": 32},
        {"bits": 3},
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"int8|Input should be"):
        QuantizeOptions(**options)


def test_an_asymmetric_grid_cannot_be_saved(tiny_llama: Any, tmp_path: Path) -> None:
    packed: dict[str, PackedWeight] = {
        name: round_to_nearest(linear.weight.detach(), Grid(4, False, 32))
        for name, linear in linears_of(tiny_llama).items()
    }
    with pytest.raises(ValueError, match="symmetric grid"):
        save_compressed_tensors(tiny_llama, packed, tmp_path)
    with pytest.raises(ValueError, match="no quantized layers"):
        save_compressed_tensors(tiny_llama, {}, tmp_path)

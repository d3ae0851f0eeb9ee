"""Training with rounded weights: gradients, integers that move, integers that stay."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from turnmill.compression.calibration import linears_of  # noqa: E402
from turnmill.compression.checkpoint import restore_packed, save_state  # noqa: E402
from turnmill.compression.prune.masks import Pattern, prune_pattern  # noqa: E402
from turnmill.compression.quantize.affine import Grid  # noqa: E402
from turnmill.compression.quantize.layers import (  # noqa: E402
    W8A8Linear,
    quantize_tokens,
    rounded_tokens,
)
from turnmill.compression.quantize.qat import (  # noqa: E402
    Qat,
    QatOptions,
    Rounding,
    straight_through,
)
from turnmill.compression.quantize.reopen import load_packed  # noqa: E402
from turnmill.compression.quantize.rtn import round_to_nearest  # noqa: E402
from turnmill.compression.quantize.save import save_quantized  # noqa: E402
from turnmill.compression.quantize.step import Quantize, QuantizeOptions  # noqa: E402
from turnmill.compression.step import Silent, State  # noqa: E402
from turnmill.schemas.errors import InvalidInput  # noqa: E402

#: Enough to move some integers of a tiny model.
TRAINING = {"steps": 12, "learning_rate": 1e-2, "length": 32, "bf16": False, "alpha": 0.0}


@pytest.fixture
def quantized(
    tiny_llama: Any, tiny_llama_maker: Any, tiny_texts: Any, tiny_tokenizer: Any, tmp_path: Path
) -> State:
    state = State(tiny_llama, tiny_tokenizer, tiny_texts, tiny_llama_maker, tmp_path / "s", seed=1)
    state.folder.mkdir()
    Quantize()(state, QuantizeOptions(method="rtn", bits=4, group=32, observer="minmax"), Silent())
    return state


def distance(model: Any, original: Any, ids: Any) -> float:
    """Return the mean KL divergence from the original's next tokens, nats."""
    with torch.no_grad():
        mine, theirs = (each(input_ids=ids).logits.log_softmax(-1) for each in (model, original))
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def test_the_gradient_of_a_rounded_weight_is_that_of_the_weight() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rounding = Rounding(round_to_nearest(weight.detach(), Grid(4, True, 16), "minmax"))
    rounding(0.9 * weight).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 0.9))


def test_a_weight_outside_the_range_gets_no_gradient() -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    rounding = Rounding(round_to_nearest(weight, Grid(4, True, 16), "minmax"))
    weight = 0.9 * weight
    weight[0, 0] = 100
    weight.requires_grad_()
    rounding(weight).sum().backward()
    assert weight.grad[0, 0] == 0
    assert weight.grad.count_nonzero() == weight.numel() - 1


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes() -> None:
    """∂ŵ/∂s is round(w/s) − w/s inside the range, and the outermost integer outside of it."""
    weight = torch.randn(1, 16, generator=torch.Generator().manual_seed(2)) * 3
    packed = round_to_nearest(weight, Grid(4), "percentile")
    rounding = Rounding(packed)
    rounding(weight).sum().backward()
    parts = weight / packed.scales
    inside = parts.round() - parts
    expected = torch.where((parts < -8) | (parts > 7), parts.clamp(-8, 7), inside).sum()
    assert float(rounding.log_scales.grad) == pytest.approx(
        float(expected * packed.scales.item()), rel=1e-3
    )


def test_the_forward_pass_computes_with_what_is_packed() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    rounding = Rounding(round_to_nearest(weight, Grid(4, True, 32)))
    with torch.no_grad():
        rounding.log_scales += 0.01
    assert torch.equal(rounding(weight), rounding.pack(weight).dense())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "how",
    [{"learning_rate": 2e-3, "steps": 24, "batch": 8}, {"train": "scales"}, {"lora": 4}],
    ids=str,
)
def test_training_recovers_some_of_what_rounding_lost(
    quantized: State, tiny_llama_maker: Any, how: dict[str, Any], tmp_path: Path
) -> None:
    original = tiny_llama_maker()
    before = distance(quantized.model, original, quantized.texts.heldout)
    integers = {name: each.integers.clone() for name, each in quantized.packed.items()}
    told = Qat()(quantized, QatOptions(**{**TRAINING, **how}), Silent())
    assert distance(quantized.model, original, quantized.texts.heldout) < before
    assert quantized.format == "int4"
    moved = sum(int((quantized.packed[n].integers != integers[n]).sum()) for n in integers)
    assert moved == told["integers_changed"]
    assert (moved == 0) == (how.get("train") == "scales")
    for name, linear in linears_of(quantized.model).items():
        assert type(linear) is torch.nn.Linear
        assert torch.equal(linear.weight, quantized.packed[name].dense())
    save_quantized(quantized, tmp_path / "saved")
    loaded = load_packed(tmp_path / "saved", torch.float32)
    assert distance(loaded, quantized.model, quantized.texts.heldout) < 1e-5


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("lora", [None, 4], ids=["weights", "lora"])
def test_a_w8a8_model_is_trained_with_the_arithmetic_of_the_artifact(
    tiny_llama: Any,
    tiny_llama_maker: Any,
    tiny_texts: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    lora: int | None,
) -> None:
    """Layer by layer, since a sum in another order carries some activation over a tie."""
    state = State(tiny_llama, tiny_tokenizer, tiny_texts, tiny_llama_maker, tmp_path / "s", seed=1)
    state.folder.mkdir()
    Quantize()(state, QuantizeOptions(method="smoothquant"), Silent())
    trained: dict[str, Any] = {}

    def inputs(layer: Any) -> Any:
        random = torch.Generator().manual_seed(3)
        return torch.randn(2, 5, layer.in_features, generator=random)

    class Watching(Silent):
        """Asks every layer of the network in training, each time a step ends."""

        @torch.no_grad()
        def advance(self, done: float = 1) -> None:
            for name in state.packed:
                layer = state.model.get_submodule(name)
                trained[name] = layer(inputs(layer))

    Qat()(state, QatOptions(**TRAINING, lora=lora), Watching())

    assert state.format == "w8a8"
    save_quantized(state, tmp_path / "saved")
    saved = load_packed(tmp_path / "saved", torch.float32)
    for name, linear in linears_of(state.model).items():
        layer = saved.get_submodule(name)
        assert isinstance(layer, W8A8Linear)
        torch.testing.assert_close(trained[name], layer(inputs(linear)), rtol=1e-4, atol=1e-4)
        # Without hooks the layer is an ordinary one again, which rounds no activation.
        assert (linear(inputs(linear)) - trained[name]).abs().max() > 1e-3


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("how", [{}, {"lora": 4}, {"keep_zeros": False}], ids=str)
def test_a_pruned_model_stays_pruned_unless_its_zeros_are_given_up(
    tiny_llama: Any,
    tiny_llama_maker: Any,
    tiny_texts: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    how: dict[str, Any],
) -> None:
    state = State(tiny_llama, tiny_tokenizer, tiny_texts, tiny_llama_maker, tmp_path / "s", seed=1)
    state.folder.mkdir()
    dense = "model.layers.1.mlp.down_proj"
    for name, linear in linears_of(state.model).items():
        if name != dense:
            linear.weight.data *= prune_pattern(linear.weight.abs(), Pattern(2, 4))
    Quantize()(state, QuantizeOptions(method="gptq", bits=4, group=32), Silent())
    before = {name: each.integers for name, each in state.packed.items()}
    # The zeros of a pruned model outlast the folder between two steps.
    save_state(state, {}, tmp_path / "between")
    restore_packed(state, tmp_path / "between")

    told = Qat()(state, QatOptions(**TRAINING, **how), Silent())

    assert told["integers_changed"] > 0
    for name, packed in state.packed.items():
        fours = (packed.integers != 0).unflatten(1, (-1, 4)).sum(-1)
        is_pruned = name != dense and how.get("keep_zeros", True)
        assert bool((fours <= 2).all()) == is_pruned
        if is_pruned:
            assert not packed.integers[before[name] == 0].any()
            assert not linears_of(state.model)[name].weight[before[name] == 0].any()
    assert state.pruned == before.keys() - {dense}
    if "lora" not in how:  # Weights that were only rounded to zero may come back.
        assert state.packed[dense].integers[before[dense] == 0].any()


@pytest.mark.usefixtures("one_thread")
def test_a_rounded_activation_passes_its_gradient_on() -> None:
    states = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    rounded = straight_through(states, rounded_tokens)
    (rounded @ weight.T).sum().backward()
    torch.testing.assert_close(states.grad, weight.sum(0).expand(3, 16))
    integers, scales = quantize_tokens(states.detach())
    torch.testing.assert_close(rounded.detach(), integers * scales)


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_resumes_ends_with_the_same_integers(
    quantized: State, tiny_llama_maker: Any
) -> None:
    from copy import deepcopy

    again = deepcopy(quantized.packed)
    first = Qat()(quantized, QatOptions(**TRAINING), Silent())
    ended = {name: each.integers for name, each in quantized.packed.items()}
    quantized.model, quantized.packed = tiny_llama_maker(), again
    for name, linear in linears_of(quantized.model).items():
        linear.weight.data = again[name].dense()
    assert Qat()(quantized, QatOptions(**TRAINING), Silent()) == first
    assert all(torch.equal(ended[n], each.integers) for n, each in quantized.packed.items())


def test_a_model_that_is_not_quantized_is_refused(quantized: State) -> None:
    quantized.packed = {}
    with pytest.raises(InvalidInput, match="put a step 'quantize'"):
        Qat()(quantized, QatOptions(**TRAINING), Silent())


@pytest.mark.parametrize(
    "options",
    [{"l1": 0.1}, {"lora": 4, "train": "scales"}, {"layers": 1}, {"teacher": "current"}],
    ids=str,
)
def test_options_that_make_no_sense_for_a_quantized_model_are_refused(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="leave out"):
        QatOptions(**TRAINING, **options)

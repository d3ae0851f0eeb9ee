"""The sequential runner, and GPTQ beside a dense reference in float64."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from turnmill.compression.calibration import (  # noqa: E402
    Stage,
    linears_of,
    run_layers,
)
from turnmill.compression.quantize.affine import Grid, quantize  # noqa: E402
from turnmill.compression.quantize.gptq import gptq, output_error  # noqa: E402
from turnmill.compression.quantize.observers import mse, storable  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = torch.randint(3, 250, (5, 24), generator=torch.Generator().manual_seed(1))


def gram_read_by(model: Any, name: str) -> Any:
    """Return the mean x·xᵀ that a layer reads in one plain pass over the whole model."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(WINDOWS)
    hook.remove()
    rows = seen[0].flatten(0, 1).double()
    return rows.T @ rows / len(rows)


def test_linear_layers_that_read_the_same_vectors_are_one_stage(tiny_llama: Any) -> None:
    stages: list[list[str]] = []
    run_layers(tiny_llama, WINDOWS, lambda s: stages.append([n.rsplit(".")[-1] for n in s.linears]))
    of_a_layer = [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert stages == of_a_layer * 2


def tiny_gemma() -> Any:
    """A model whose layers differ in their masks and their RoPE."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_statistics_are_those_of_a_plain_pass(tiny_llama: Any, kind: str) -> None:
    model = tiny_llama if kind == "llama" else tiny_gemma()

    def check(stage: Stage) -> None:
        for name in stage.linears:
            expected = gram_read_by(model, name)
            assert torch.allclose(stage.inputs.gram.double(), expected, rtol=1e-4, atol=1e-6)
        assert stage.inputs.tokens == WINDOWS.numel()
        assert bool((stage.inputs.absmean <= stage.inputs.absmax).all())

    run_layers(model, WINDOWS, check, batch=2)


def test_later_layers_read_what_compressed_layers_say(tiny_llama: Any) -> None:
    def halve(stage: Stage) -> None:
        if stage.index == 1 and "q_proj" in next(iter(stage.linears)):
            expected = gram_read_by(tiny_llama, next(iter(stage.linears)))
            assert torch.allclose(stage.inputs.gram.double(), expected, rtol=1e-4, atol=1e-6)
        for linear in stage.linears.values():
            linear.weight.mul_(0.5)

    run_layers(tiny_llama, WINDOWS, halve)


def test_the_head_and_the_embedding_are_left_alone(tiny_llama: Any) -> None:
    names = linears_of(tiny_llama)
    assert len(names) == 14
    assert "lm_head" not in names
    assert all(tiny_llama.get_submodule(name) is linear for name, linear in names.items())


def dense_gptq(weight: Any, gram: Any, grid: Grid, damping: float) -> Any:
    """The paper's equations as written: after each column, update the rest and shrink H⁻¹."""
    scales, _ = storable(mse(weight, grid, gram.diagonal()))
    wide = scales.unsqueeze(-1).expand_as(grid.split(weight)).reshape(weight.shape).double()
    hessian = gram.double().clone()
    hessian.diagonal().add_(damping * float(hessian.diagonal().mean()))
    left, inverse = weight.double().clone(), torch.linalg.inv(hessian)
    integers = torch.zeros_like(left)
    for column in gram.diagonal().argsort(descending=True).tolist():
        whole = (left[:, column] / wide[:, column]).round().clamp(grid.low, grid.high)
        integers[:, column] = whole
        error = (left[:, column] - whole * wide[:, column]) / inverse[column, column]
        left -= error[:, None] * inverse[column][None, :]
        inverse = (
            inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        )
    return integers


def correlated_inputs(seed: int, size: int = 192, tokens: int = 2000) -> Any:
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=random) * torch.rand(size, generator=random) ** 3
    rows = torch.randn(tokens, size, generator=random) @ mix
    return rows.T @ rows / tokens


@pytest.mark.parametrize("grid", [Grid(4, True, 64), Grid(4, True, "channel")], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_gptq_is_the_papers_formula(grid: Grid, seed: int) -> None:
    gram = correlated_inputs(seed)
    weight = torch.randn(32, 192, generator=torch.Generator().manual_seed(seed + 50))
    found = gptq(weight, gram, grid, damping=0.01)
    expected = dense_gptq(weight, gram, grid, 0.01)
    same = (found.weight.integers == expected).float().mean()
    # A tie that float32 rounds the other way changes the later columns of its row.
    assert same > 0.98
    assert found.error < 0.6 * found.nearest_error


@pytest.mark.parametrize("grid", [Grid(4, False, 64), Grid(8, False, "channel")], ids=str)
def test_gptq_serves_asymmetric_grids(grid: Grid) -> None:
    gram = correlated_inputs(1)
    weight = torch.randn(32, 192, generator=torch.Generator().manual_seed(9)).abs()
    found = gptq(weight, gram, grid)
    assert found.error == pytest.approx(output_error(weight, found.weight.dense(), gram))
    assert found.error < found.nearest_error


@pytest.mark.parametrize("grid", [Grid(4, True, 64), Grid(4, False, 64)], ids=str)
def test_gptq_keeps_the_zeros_of_a_pruned_matrix(grid: Grid) -> None:
    gram = correlated_inputs(2)
    weight = torch.randn(32, 192, generator=torch.Generator().manual_seed(7))
    weight[weight.abs() < weight.abs().median()] = 0
    found = gptq(weight, gram, grid)
    assert bool((found.weight.dense()[weight == 0].abs() < 1e-6).all())
    assert found.error < found.nearest_error


def test_gptq_falls_back_to_the_nearest_where_inputs_are_uncorrelated() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    gram = torch.eye(64)
    found = gptq(weight, gram, Grid(4, True, 64))
    scales = storable(mse(weight, Grid(4, True, 64), gram.diagonal()))
    assert torch.equal(found.weight.integers, quantize(weight, *scales, Grid(4, True, 64)))
    assert found.error == found.nearest_error


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: g.zero_(),
        lambda g: g[:40].zero_() + g[:, :40].zero_().sum(),
        lambda g: g.mul_(1e-12),
    ],
    ids=["no input", "dead channels", "tiny inputs"],
)
def test_gptq_survives_grams_without_full_rank(spoil: Callable[[Any], Any]) -> None:
    gram = correlated_inputs(4)
    spoil(gram)
    weight = torch.randn(8, 192, generator=torch.Generator().manual_seed(3))
    found = gptq(weight, gram, Grid(4, True, 64))
    assert bool(found.weight.dense().isfinite().all())
    assert found.error <= found.nearest_error

"""Scores and masks: exactly as sparse as asked; Wanda and SparseGPT as their papers write them."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from turnmill.compression.calibration import linears_of
from turnmill.compression.distill.finetune import next_token_loss
from turnmill.compression.prune import l1, scores
from turnmill.compression.prune.masks import (
    KeptZeros,
    Pattern,
    parse_pattern,
    prune_matrix,
    prune_pattern,
    prune_rows,
)
from turnmill.compression.prune.schedule import cubic
from turnmill.compression.prune.sparsegpt import BLOCK, DAMPING, sparsegpt
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(1, 1), (3, 8), (17, 40), (64, 576)]
SPARSITIES = [0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(tokens: int, features: int, seed: int = 0) -> Tensor:
    """Inputs with loud and quiet features that go together, as activations do."""
    mixing = random(features, features, seed=seed) / features**0.5
    order = torch.randperm(features, generator=torch.Generator().manual_seed(seed))
    loudness = torch.logspace(-1, 1, features)[order]
    return (random(tokens, features, seed=seed + 1) @ (mixing + torch.eye(features))) * loudness


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("ties", [False, True])
def test_masks_have_exactly_the_sparsity_asked_for(
    shape: tuple[int, int], sparsity: float, ties: bool
) -> None:
    importance = torch.ones(shape) if ties else random(*shape).abs()
    whole, rows = prune_matrix(importance, sparsity), prune_rows(importance, sparsity)
    assert int((~whole).sum()) == round(sparsity * importance.numel())
    assert set((~rows).sum(1).tolist()) == {round(sparsity * shape[1])}
    for mask in (whole,) if 0 < int(whole.sum()) < whole.numel() else ():
        assert importance[mask].min() >= importance[~mask].max()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:8"])
def test_patterns_keep_the_highest_of_every_group(pattern: str) -> None:
    parsed = parse_pattern(pattern)
    importance = random(16, 48).abs()
    groups = prune_pattern(importance, parsed).reshape(16, -1, parsed.of)
    assert set(groups.sum(-1).flatten().tolist()) == {parsed.kept}
    values = importance.reshape(16, -1, parsed.of)
    kept = values.masked_fill(~groups, torch.inf).amin(-1)
    dropped = values.masked_fill(groups, -torch.inf).amax(-1)
    assert (kept >= dropped).all()


@pytest.mark.parametrize("text", ["", "2", "4:2", "4:4", "0:4", "a:b", "-1:4", "2:4:8"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no pattern"):
        parse_pattern(text)


def test_a_pattern_that_does_not_divide_the_columns_is_refused() -> None:
    with pytest.raises(InvalidInput, match="4 does not divide 6"):
        prune_pattern(random(2, 6), Pattern(2, 4))


def test_wanda_is_the_published_formula() -> None:
    """|W| · ‖X‖₂ per column, compared within each row: Sun et al. 2023, equation 1."""
    weight, inputs = random(12, 32), correlated_inputs(200, 32)
    norms = (inputs.T @ inputs).diagonal().sqrt()
    mask = prune_rows(scores.wanda(weight, norms), 0.5)
    for i in range(12):
        by_hand = [abs(float(weight[i, j])) * float(inputs[:, j].norm()) for j in range(32)]
        lowest = sorted(range(32), key=by_hand.__getitem__)[:16]
        assert {int(j) for j in torch.where(~mask[i])[0]} == set(lowest)


def dense_sparsegpt(
    weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern | None, block: int
) -> Tensor:
    """Algorithm 1 of the paper without its shortcuts: the inverse of what is left of the Hessian
    is computed anew for every column, in float64, and each row is updated by itself.
    """
    w, size = weight.double().clone(), len(gram)
    h = gram.double() + DAMPING * gram.double().diagonal().mean() * torch.eye(size).double()
    width = pattern.of if pattern else block
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(size)]
    for start in range(0, size, width):
        end = min(start + width, size)
        # After elimination of the columns before j, [H⁻¹]ⱼⱼ is the first entry of the inverse.
        saliency = torch.stack([w[:, j] ** 2 / inverses[j][0, 0] for j in range(start, end)], 1)
        if pattern:
            lowest = saliency.topk(pattern.of - pattern.kept, largest=False, dim=1).indices
            pruned = torch.zeros_like(saliency, dtype=torch.bool).scatter(1, lowest, True)
        else:
            count = round(sparsity * saliency.numel())
            order = saliency.flatten().argsort()[:count]
            pruned = torch.zeros(saliency.numel(), dtype=torch.bool).index_fill(0, order, True)
            pruned = pruned.reshape(saliency.shape)
        for j in range(start, end):
            for i in torch.where(pruned[:, j - start])[0].tolist():
                w[i, j:] -= w[i, j] / inverses[j][0, 0] * inverses[j][0]
                w[i, j] = 0
    return w


def output_error(weight: Tensor, pruned: Tensor, inputs: Tensor) -> float:
    return float((inputs.double() @ (weight.double() - pruned.double()).T).square().mean())


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, None), (0.7, None), (0.5, Pattern(2, 4))])
def test_sparsegpt_is_within_three_per_cent_of_the_dense_formula(
    sparsity: float, pattern: Pattern | None
) -> None:
    weight, inputs = random(24, 160), correlated_inputs(400, 160)
    gram = inputs.T @ inputs / len(inputs)
    found = sparsegpt(weight, gram, sparsity, pattern)
    reference = dense_sparsegpt(weight, gram, sparsity, pattern, BLOCK)
    expected = output_error(weight, reference, inputs)
    assert output_error(weight, found, inputs) == pytest.approx(expected, rel=0.03)
    assert ((found == 0) == (reference == 0)).float().mean() > 0.99
    importance = scores.wanda(weight, gram.diagonal().sqrt())
    mask = prune_pattern(importance, pattern) if pattern else prune_rows(importance, sparsity)
    assert expected < output_error(weight, weight * mask, inputs)


@pytest.mark.parametrize("columns", [40, BLOCK, BLOCK + 37, 3 * BLOCK])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_sparsegpt_is_exactly_as_sparse_as_asked(columns: int, sparsity: float) -> None:
    weight, inputs = random(9, columns), correlated_inputs(500, columns)
    found = sparsegpt(weight, inputs.T @ inputs, sparsity)
    assert int((found == 0).sum()) == round(sparsity * weight.numel())
    if sparsity == 0:
        assert torch.equal(found, weight)


def test_sparsegpt_keeps_the_pattern_and_the_dtype() -> None:
    weight, inputs = random(8, 64).bfloat16(), correlated_inputs(300, 64)
    found = sparsegpt(weight, inputs.T @ inputs, 0.5, Pattern(2, 4))
    assert found.dtype == torch.bfloat16
    assert ((found != 0).reshape(8, 16, 4).sum(-1) <= 2).all()


def test_sparsegpt_takes_features_that_never_speak() -> None:
    weight, inputs = random(8, 32), correlated_inputs(300, 32)
    inputs[:, 5] = 0
    found = sparsegpt(weight, inputs.T @ inputs, 0.5)
    assert found.isfinite().all()
    assert (found[:, 5] == 0).all()


@pytest.mark.parametrize("pattern", [None, Pattern(3, 4)])
def test_sparsegpt_prunes_no_more_for_features_that_never_speak(pattern: Pattern | None) -> None:
    weight, inputs = random(8, 256), correlated_inputs(300, 256)
    inputs[:, :100] = 0
    found = sparsegpt(weight, inputs.T @ inputs, 0.25, pattern)
    assert int((found == 0).sum()) == weight.numel() // 4
    # Within a block they go before the others, and those that stay are as they were.
    kept = found != 0
    assert kept[:, 100:BLOCK].all() or pattern
    assert torch.equal(found[:, :100][kept[:, :100]], weight[:, :100][kept[:, :100]])


def test_sparsegpt_takes_features_of_very_different_loudness() -> None:
    weight, inputs = random(8, 256), correlated_inputs(64, 256)
    inputs *= torch.logspace(-3, 3, 256)
    found = sparsegpt(weight, inputs.T @ inputs, 0.5)
    assert found.isfinite().all()
    error = output_error(weight, found, inputs)
    assert error < output_error(weight, weight * prune_matrix(weight.abs(), 0.5), inputs)


def test_taylor_predicts_the_loss_without_a_weight(tiny_llama: Any, tiny_texts: Texts) -> None:
    """To first order, the loss changes by w · g when w becomes zero: checked on small weights."""
    window = tiny_texts.calibration[:1]
    found = scores.taylor_scores(tiny_llama, window, next_token_loss)
    name, layer = next(iter(linears_of(tiny_llama).items()))
    weight = layer.weight
    before = float(next_token_loss(tiny_llama, window).detach())
    small = torch.where(weight.abs() < 0.02, found[name], 0)
    place = divmod(int(small.argmax()), weight.shape[1])
    with torch.no_grad():
        weight[place] = 0
    after = float(next_token_loss(tiny_llama, window).detach())
    assert abs(after - before) == pytest.approx(float(found[name][place]), rel=0.1)


def test_taylor_sums_windows_without_regard_to_sign(tiny_llama: Any, tiny_texts: Texts) -> None:
    windows = tiny_texts.calibration[:2]
    both = scores.taylor_scores(tiny_llama, windows, next_token_loss)
    parts = [scores.taylor_scores(tiny_llama, each, next_token_loss) for each in windows.split(1)]
    for name, found in both.items():
        assert torch.allclose(found, parts[0][name] + parts[1][name])


def test_linears_are_those_of_the_layers_alone(tiny_llama: Any) -> None:
    assert len(linears_of(tiny_llama)) == 14
    assert not any("head" in name or "embed" in name for name in linears_of(tiny_llama))


def test_the_penalty_is_the_sum_of_absolute_weights(tiny_llama: Any) -> None:
    by_hand = sum(
        float(each.weight.detach().abs().sum()) for each in linears_of(tiny_llama).values()
    )
    assert float(l1.penalty(tiny_llama).detach()) == pytest.approx(by_hand, rel=1e-5)


def test_shrinking_stops_at_zero(tiny_llama: Any) -> None:
    before = {name: each.weight.clone() for name, each in linears_of(tiny_llama).items()}
    l1.shrink(tiny_llama, 0.1)
    for name, layer in linears_of(tiny_llama).items():
        assert torch.equal(layer.weight == 0, before[name].abs() <= 0.1)
        moved = (before[name] - layer.weight).abs()
        assert torch.allclose(moved, before[name].abs().clamp(max=0.1))
    assert KeptZeros(tiny_llama).share > 0.3


def test_the_cubic_schedule_rises_fast_and_ends_at_the_final_sparsity() -> None:
    found = [cubic(stage, 4, 0.5) for stage in range(5)]
    assert found[0] == 0
    assert found[-1] == 0.5
    steps = [after - before for before, after in pairwise(found)]
    assert steps == sorted(steps, reverse=True)
    assert cubic(1, 2, 0.8, 0.4) == pytest.approx(0.75)

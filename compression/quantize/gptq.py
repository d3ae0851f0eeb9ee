"""GPTQ: round the columns of a matrix one by one, and let later columns make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", https://arxiv.org/abs/2210.17323, with static groups: scales are chosen before the
columns are ordered by the size of their inputs ("act-order"), so that no index is stored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from turnmill.compression.quantize.affine import Grid, PackedWeight, quantize
from turnmill.compression.quantize.observers import mse, storable

#: A matrix with a larger share of zeros counts as pruned.
PRUNED_FROM = 0.01

#: Columns whose errors are passed on at once: the paper's B.
BLOCK = 128


@dataclass(frozen=True)
class Rounded:
    """A quantized matrix, its error on the calibration data, and round-to-nearest's."""

    weight: PackedWeight
    error: float
    nearest_error: float


def gptq(weight: Tensor, gram: Tensor, grid: Grid, damping: float = 0.01) -> Rounded:
    """Quantize a matrix so that its products with the calibrated inputs change least.

    Returns round-to-nearest on the same scales where that is the better of the two. The zeros of a
    pruned matrix stay zero: only its other weights make up for errors.

    Args:
        weight: [out, in].
        gram: float32 [in, in], the mean of x·xᵀ over the inputs.
        damping: what is added to the gram's diagonal, as a share of its mean.
    """
    scales = storable(mse(weight, grid, gram.diagonal()))
    nearest = PackedWeight(quantize(weight, *scales, grid), *scales, grid)
    nearest_error = output_error(weight, nearest.dense(), gram)
    integers = _round_columns(weight.float(), gram, nearest, damping)
    ours = PackedWeight(integers, *scales, grid)
    error = output_error(weight, ours.dense(), gram)
    if error < nearest_error:
        return Rounded(ours, error, nearest_error)
    return Rounded(nearest, nearest_error, nearest_error)


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """Return the mean over tokens of ‖(W − Ŵ)·x‖², from the gram of the inputs."""
    difference = weight.float() - rounded
    return float(((difference @ gram) * difference).sum())


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped gram's inverse, float32 [in, in].

    Damping grows tenfold until the factorization succeeds. Channels that are never active have a
    unit diagonal, so that they pass no error on.
    """
    gram = gram.clone()
    diagonal = gram.diagonal()
    diagonal[diagonal == 0] = 1
    step = damping * float(diagonal.mean())
    for _ in range(8):
        diagonal += step
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        step *= 10
    return torch.eye(len(gram))


def _round_columns(weight: Tensor, gram: Tensor, start: PackedWeight, damping: float) -> Tensor:
    """Return the integers that GPTQ chooses on the scales of `start`, int8 [out, in]."""
    pruned = weight == 0
    if pruned.float().mean() < PRUNED_FROM:
        pruned.zero_()
    order = gram.diagonal().argsort(descending=True)
    factor = inverse_factor(gram[order][:, order], damping)
    left, pruned = weight[:, order].clone(), pruned[:, order]
    scales = _by_column(start.scales, weight, start.grid)[:, order]
    zeros = _by_column(start.zeros, weight, start.grid)[:, order] if start.zeros is not None else 0
    integers = torch.empty_like(left)
    columns = left.shape[1]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        errors = torch.empty(len(left), last - first)
        for column in range(first, last):
            scale = scales[:, column]
            zero = zeros[:, column] if isinstance(zeros, Tensor) else 0
            wanted = left[:, column].masked_fill(pruned[:, column], 0)
            whole = ((wanted - zero) / scale).round()
            whole = whole.clamp(start.grid.low, start.grid.high)
            error = (left[:, column] - whole * scale - zero) / factor[column, column]
            left[:, column:last].addr_(error, factor[column, column:last], alpha=-1)
            integers[:, column] = whole
            errors[:, column - first] = error
        left[:, last:] -= errors @ factor[first:last, last:]
    return integers[:, order.argsort()].to(torch.int8)


def _by_column(values: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Repeat the values of groups, [rows, groups], for each weight: [out, in]."""
    return values.unsqueeze(-1).expand_as(grid.split(weight)).reshape(weight.shape)

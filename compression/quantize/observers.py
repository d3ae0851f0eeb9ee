"""Observers: they look at numbers and choose the scale and the zero of a quantization grid.

Each takes a matrix [out, in] and returns scales and real zeros, float32 [rows, groups]; the zeros
are None on a symmetric grid. A zero is a multiple of its scale, so that the real 0 stays exact and
integer kernels can serve the result.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from turnmill.compression.quantize.affine import Grid, dequantize, quantize

Scales = tuple[Tensor, Tensor | None]
ObserverName = Literal["minmax", "percentile", "mse"]

#: Shares of the full range that the MSE observer tries, from the widest.
SHRINKS = tuple(1 - step / 40 for step in range(21))


def from_range(low: Tensor, high: Tensor, grid: Grid) -> Scales:
    """Spread the grid's integers over [low, high], widened to contain 0.

    A symmetric grid of 2ⁿ integers takes s = 2·max|x| / (2ⁿ − 1): the largest number is half a step
    from the outermost integer, and no integer is wasted. An empty range gets the scale 1.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    largest = torch.finfo(torch.float32).max / 2
    low, high = low.clamp(min=-largest), high.clamp(max=largest)
    steps = (1 << grid.bits) - 1
    extent = 2 * torch.maximum(-low, high) if grid.symmetric else high - low
    scales = extent / steps
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    if grid.symmetric:
        return scales, None
    return scales, -scales * (grid.low - low / scales).round().clamp(grid.low, grid.high)


def minmax(weight: Tensor, grid: Grid) -> Scales:
    """Cover every number: the range from the least to the largest."""
    parts = grid.split(weight)
    return from_range(parts.amin(-1), parts.amax(-1), grid)


def percentile(weight: Tensor, grid: Grid, share: float = 0.999) -> Scales:
    """Cover the given share of the numbers and clip the outermost, half of them on each side."""
    ordered = grid.split(weight.float()).sort(-1).values
    last = ordered.shape[-1] - 1
    cut = round(last * (1 - share) / 2)
    return from_range(ordered[..., cut], ordered[..., last - cut], grid)


def mse(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Scales:
    """Try narrower and narrower ranges, and take the one with the least squared error.

    importance: float [in], how much an error in each column counts, such as the mean square of the
    column's input; equal if None.
    """
    parts = grid.split(weight)
    low, high = parts.amin(-1), parts.amax(-1)
    best = from_range(low, high, grid)
    least = squared_error(weight, best, grid, importance)
    for shrink in SHRINKS[1:]:
        scales = from_range(low * shrink, high * shrink, grid)
        error = squared_error(weight, scales, grid, importance)
        best = _choose(error < least, scales, best)
        least = torch.minimum(error, least)
    return best


def squared_error(weight: Tensor, scales: Scales, grid: Grid, importance: Tensor | None) -> Tensor:
    """Return the sum of (x − x̂)², weighted by column, of each row and group: [rows, groups]."""
    rounded = dequantize(quantize(weight, *scales, grid), *scales, grid)
    squares = (weight.float() - rounded).square()
    if importance is not None:
        squares = squares * importance
    return grid.split(squares).sum(-1)


def _choose(first: Tensor, scales: Scales, otherwise: Scales) -> Scales:
    zeros = None
    if scales[1] is not None and otherwise[1] is not None:
        zeros = torch.where(first, scales[1], otherwise[1])
    return torch.where(first, scales[0], otherwise[0]), zeros


def storable(scales: Scales) -> Scales:
    """Round scales up to bfloat16, so that a checkpoint in 16 bits keeps them exactly.

    Zeros move with their scales: their integer zero points stay.
    """
    real, zeros = scales
    stored = (real * (1 + 2**-8)).to(torch.bfloat16).float()
    return stored, None if zeros is None else (zeros / real).round() * stored


OBSERVERS: dict[ObserverName, Callable[[Tensor, Grid], Scales]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}

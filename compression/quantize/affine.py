"""The affine quantizer: real numbers to a few bits and back, as pure functions.

The textbook writes Q(x) = round((x − z) / s) with a real zero z, in the units of x. Inference
kernels write q = clamp(round(x / s) + Z, low, high) with an integer zero point Z. The two are one
formula where z = −s·Z: round((x + s·Z) / s) = round(x / s) + Z, because Z is an integer, and the
clamp only says which integers the bits can hold. A z that is a multiple of s therefore keeps the
real 0 exact; any other z does not, and no integer kernel can serve it.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", https://arxiv.org/abs/1712.05877, section 2.1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: How many weights share a scale: all of the matrix, a row, or so many neighbours in a row.
Sharing = int | Literal["tensor", "channel"]


@dataclass(frozen=True)
class Grid:
    """The numbers a quantized weight can take: their bits, their symmetry, who shares a scale."""

    bits: int = 8
    symmetric: bool = True
    group: Sharing = "channel"

    @property
    def low(self) -> int:
        """The least integer."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    def split(self, weight: Tensor) -> Tensor:
        """View a matrix [out, in] as [rows, groups, size]: one scale for each row and group.

        Raises:
            ValueError: the group does not divide the row.
        """
        if self.group == "tensor":
            return weight.reshape(1, 1, -1)
        if self.group == "channel":
            return weight.unsqueeze(1)
        if weight.shape[1] % self.group:
            raise ValueError(
                f"Groups of {self.group} do not divide rows of {weight.shape[1]} weights: "
                "choose a divisor, such as 64 or 32."
            )
        return weight.unflatten(1, (-1, self.group))


@dataclass(frozen=True)
class PackedWeight:
    """A matrix as integers, with what turns them back into real numbers.

    integers: int8 [out, in]. scales: float32 [rows, groups]. zeros: the real zeros, float32 like
    the scales, or None on a symmetric grid.
    """

    integers: Tensor
    scales: Tensor
    zeros: Tensor | None
    grid: Grid

    def dense(self) -> Tensor:
        """Return the matrix that the integers stand for, float32 [out, in]."""
        return dequantize(self.integers, self.scales, self.zeros, self.grid)

    def zero_points(self) -> Tensor:
        """Return the integer zero points Z = −z / s, int8 [rows, groups]."""
        if self.zeros is None:
            return torch.zeros_like(self.scales, dtype=torch.int8)
        return (-self.zeros / self.scales).round().to(torch.int8)

    @property
    def bytes(self) -> int:
        """The size on disk: packed integers, 16-bit scales, packed zero points."""
        bits: int = self.integers.numel() * self.grid.bits + self.scales.numel() * 16
        if self.zeros is not None:
            bits += self.zeros.numel() * self.grid.bits
        return (bits + 7) // 8


def quantize(weight: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    """Round a matrix to its integers, int8 [out, in]: clamp(round((x − z) / s)).

    scales, zeros: [rows, groups] of the grid. Infinite weights take the outermost integers.
    """
    parts = grid.split(weight.float())
    if zeros is not None:
        parts = parts - zeros.unsqueeze(-1)
    integers = (parts / scales.unsqueeze(-1)).round().clamp(grid.low, grid.high)
    return integers.to(torch.int8).reshape(weight.shape)


def dequantize(integers: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    """Return s·q + z, float32 [out, in]: the inverse of `quantize` on the grid's own numbers."""
    parts = grid.split(integers).float() * scales.unsqueeze(-1)
    if zeros is not None:
        parts = parts + zeros.unsqueeze(-1)
    return parts.reshape(integers.shape)

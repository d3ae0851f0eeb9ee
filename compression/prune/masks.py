"""Masks: which weights a pruned matrix keeps, exactly as many as the sparsity asks for.

A mask is bool, of the weight's shape; True keeps the weight. The higher a score, the later its
weight is pruned. Of equal scores the first is pruned first, so masks do not depend on chance.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turnmill.compression.calibration import linears_of
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `of` neighbours in a row are non-zero (2:4: kept 2, of 4)."""

    kept: int
    of: int

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.of


def parse_pattern(text: str) -> Pattern:
    """Read a pattern such as `2:4`.

    Raises:
        InvalidInput: it is none.
    """
    kept, _, of = text.partition(":")
    if not (kept.isdecimal() and of.isdecimal() and 0 < int(kept) < int(of)):
        raise InvalidInput(
            f"'{text}' is no pattern. Write KEPT:OF, such as 2:4 for at most two non-zero weights "
            "among every four.",
            param="pattern",
        )
    return Pattern(int(kept), int(of))


def prune_matrix(scores: Tensor, sparsity: float) -> Tensor:
    """Prune the lowest scores of the whole matrix: round(sparsity · size) of them."""
    return prune_lowest(scores.flatten(), round(sparsity * scores.numel())).reshape(scores.shape)


def prune_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Prune the lowest scores of each row: round(sparsity · columns) of them."""
    return prune_lowest(scores, round(sparsity * scores.shape[-1]))


def prune_pattern(scores: Tensor, pattern: Pattern) -> Tensor:
    """Keep the `pattern.kept` highest scores of every `pattern.of` neighbours in a row.

    Raises:
        InvalidInput: the columns cannot be divided into such groups.
    """
    rows, columns = scores.shape
    if columns % pattern.of:
        raise InvalidInput(
            f"A matrix of {columns} columns cannot be pruned {pattern}: {pattern.of} does not "
            f"divide {columns}.",
            param="pattern",
        )
    groups = scores.reshape(rows, columns // pattern.of, pattern.of)
    return prune_lowest(groups, pattern.of - pattern.kept).reshape(scores.shape)


def prune_lowest(scores: Tensor, count: int) -> Tensor:
    """Prune the `count` lowest scores along the last dimension."""
    order = scores.argsort(dim=-1, stable=True)
    mask = torch.ones_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, order[..., :count], False)


class KeptZeros:
    """The zeros of a model's linear layers, to be restored after each step of training."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._kept = [(each.weight, each.weight != 0) for each in linears_of(model).values()]

    @property
    def share(self) -> float:
        """The share of weights that are zero; 0 of a model without linear layers."""
        kept = sum(int(mask.sum()) for _, mask in self._kept)
        size: int = sum(mask.numel() for _, mask in self._kept)
        return 1 - kept / size if size else 0.0

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def restore(self, _learning_rate: float = 0.0) -> None:
        """Set the weights that were zero back to zero."""
        for weight, mask in self._kept:
            weight.mul_(mask)

"""Importance: how much a model would lose with each weight.

Scores have the weight's shape `[out, in]`; the lowest are pruned first.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turnmill.compression.calibration import linears_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def magnitude(weight: Tensor) -> Tensor:
    """|w|: small weights matter little (Han et al. 2015)."""
    return weight.abs()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w · g|: how the loss changes when w becomes zero, to first order (Molchanov et al. 2017)."""
    return (weight * gradient).abs()


def wanda(weight: Tensor, norms: Tensor) -> Tensor:
    """|w| · ‖x‖: a small weight of a loud input matters (Sun et al. 2023).

    Args:
        norms: the Euclidean norm of each input feature over the calibration tokens, `[in]`.
            Compare scores within a row of the weight only: all its inputs meet in one output.
    """
    return weight.abs() * norms


def taylor_scores(
    model: "PreTrainedModel",
    windows: Tensor,
    loss: Callable[["PreTrainedModel", Tensor], Tensor],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Return Σ |w · g| over calibration windows for every linear layer, by its name.

    The absolute value is taken window by window: at a trained model the gradients of different
    windows point opposite ways, and their sum says nothing.

    Args:
        windows: token ids, int64 `[n, length]`.
        loss: called as `loss(model, window)`.
    """
    layers = linears_of(model)
    sums = {
        name: torch.zeros_like(each.weight, dtype=torch.float32) for name, each in layers.items()
    }
    for window in windows.split(1):
        value = loss(model, window)
        gradients = torch.autograd.grad(value, [each.weight for each in layers.values()])
        for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
            sums[name] += taylor(layer.weight.detach(), gradient)
        advance()
    return sums

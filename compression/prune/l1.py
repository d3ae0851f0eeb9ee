"""L1 regularisation: the penalty that makes weights zero while a model trains (Tibshirani 1996)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turnmill.compression.calibration import linears_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def penalty(model: "PreTrainedModel") -> Tensor:
    """Return the sum of |w| over the linear layers: the term that λ multiplies in the loss."""
    return torch.stack([each.weight.abs().sum() for each in linears_of(model).values()]).sum()


@torch.no_grad()  # type: ignore[untyped-decorator]
def shrink(model: "PreTrainedModel", amount: float) -> None:
    """Move every weight of the linear layers towards zero by `amount`, and no further.

    This is the proximal step of the penalty, with amount = learning rate · λ. A gradient of |w|
    would step over zero and back for ever; this reaches exactly zero. It stands beside the
    optimizer's step, as AdamW's weight decay does, so Adam's scaling does not change λ.
    """
    for layer in linears_of(model).values():
        layer.weight.copy_(torch.nn.functional.softshrink(layer.weight, amount))

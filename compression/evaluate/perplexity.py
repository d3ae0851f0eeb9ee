"""Perplexity over token windows, as pairs: every model scores the same tokens.

Every token of a window but its first is scored, given the tokens before it in the window.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from turnmill.compression.evaluate.intervals import Figure, bootstrap, mean
from turnmill.compression.step import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def window_losses(
    model: "PreTrainedModel", windows: "Tensor", progress: Progress | None = None
) -> list[float]:
    """Return the mean negative log-likelihood (nats a token) of each window, int64 [n, length]."""
    progress = progress or Silent()
    losses = []
    for window in windows:
        losses.append(window_loss(logits_of(model, window), window))
        progress.advance()
    return losses


def window_loss(logits: "Tensor", window: "Tensor") -> float:
    """Return the mean loss of a window, nats a token: infinite where the logits give no number."""
    loss = float(token_losses(logits, window).mean())
    return loss if math.isfinite(loss) else math.inf


def logits_of(model: "PreTrainedModel", window: "Tensor") -> "Tensor":
    """Return the logits of one window, float32 [length, vocabulary]."""
    import torch

    with torch.inference_mode():
        return model(window.unsqueeze(0), use_cache=False).logits[0].float()


def token_losses(logits: "Tensor", window: "Tensor") -> "Tensor":
    """Return the negative log-likelihood of tokens 2 … length, float32 [length - 1]."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[:-1], window[1:], reduction="none")


def perplexity(losses: Sequence[float]) -> Figure:
    """Compute the perplexity of equally long windows."""
    return bootstrap(losses, _exp_of_mean)


def perplexity_ratio(losses: Sequence[float], reference: Sequence[float]) -> Figure:
    """Divide two perplexities of the same windows, in pairs: each draw takes both of a window.

    Raises:
        ValueError: the numbers of windows differ.
    """
    differences = [mine - theirs for mine, theirs in zip(losses, reference, strict=True)]
    return bootstrap(differences, _exp_of_mean)


def _exp_of_mean(nats: Sequence[float]) -> float:
    try:
        return math.exp(mean(nats))
    except OverflowError:  # above 709 nats
        return math.inf

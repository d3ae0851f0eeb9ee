"""A causal language model as one function of a window of tokens, for converters that trace."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from turnmill.compression.step import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Tokens that an exported file reads at once.
WINDOW = 64


class Window(nn.Module):  # type: ignore[misc]
    """A causal language model on one window, with its mask computed rather than looked up."""

    def __init__(self, model: "PreTrainedModel", length: int) -> None:
        super().__init__()
        self.model = model
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("mask", mask[None, None])
        self.register_buffer("positions", torch.arange(length)[None])

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            use_cache=False,
        ).logits
        return logits


def probe(state: State) -> Tensor:
    """Return a window of the held-out dialogue, repeated if it is shorter: int64 [1, window]."""
    ids = state.texts.heldout[0]
    return ids.repeat(-(-WINDOW // len(ids)))[None, :WINDOW]


@torch.no_grad()  # type: ignore[untyped-decorator]
def divergence(logits: Tensor, model: nn.Module, ids: Tensor) -> float:
    """Return the mean KL divergence of an exported file's logits from the model's, nats."""
    mine, theirs = logits.log_softmax(-1), model(ids).log_softmax(-1)
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())

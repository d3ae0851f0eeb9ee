"""Choose the MLP channels or heads that matter least on calibration text, and cut them out.

Layer by layer: the last matrix of the part is refitted to the inputs that stay, so that the next
layer is judged on what the narrowed one says.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turnmill.compression.calibration import Stage, run_layers
from turnmill.compression.prune.masks import prune_lowest
from turnmill.compression.prune.structured import (
    channel_scores,
    cut_channels,
    cut_groups,
    decoder_layers,
    group_scores,
    inputs_of,
    leave_inputs,
    matrices_of,
)
from turnmill.compression.step import Progress
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: MLP channels are kept in multiples of this, which blocks of quantized weights divide.
CHANNELS = 64

#: From a weight `[out, in]` and the Gram matrix of its inputs to the parts and the inputs to keep.
_Choice = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def narrow_mlp(
    model: "PreTrainedModel", windows: Tensor, share: float, progress: Progress
) -> "PreTrainedModel":
    """Return the model without this share of the channels of every MLP.

    Raises:
        InvalidInput: see `check_mlp`.
    """
    check_mlp(model, share)

    def choose(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        channels = _highest(channel_scores(weight, gram), share, CHANNELS)
        return channels, channels

    kept = _leave("mlp.down_proj", model, windows, choose, progress)
    return cut_channels(model, kept)


def drop_heads(
    model: "PreTrainedModel", windows: Tensor, share: float, progress: Progress
) -> "PreTrainedModel":
    """Return the model without this share of the key-value groups of every attention.

    Raises:
        InvalidInput: see `check_heads`.
    """
    check_heads(model, share)
    groups = model.config.num_key_value_heads

    def choose(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
        chosen = _highest(group_scores(weight, gram, groups), share, 1)
        return chosen, inputs_of(chosen, weight.shape[1] // groups)

    kept = _leave("self_attn.o_proj", model, windows, choose, progress)
    return cut_groups(model, kept)


def check_mlp(model: "PreTrainedModel", share: float) -> int:
    """Return how many channels of an MLP stay without this share; the weights are not looked at.

    Raises:
        InvalidInput: none would go, or the MLPs are not built like a Llama's.
    """
    size: int = matrices_of(model, "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")[0].in_features
    kept = _count_kept(size, share, CHANNELS)
    if kept == size:
        least = _least_share(size, CHANNELS)
        advice = "Prune with 'heads'"
        if least < 1:
            advice = f"Set 'sparsity' to {least:g} or more (of 'distill': 'width' to {1 - least:g})"
        raise InvalidInput(
            f"A share of {share:g} removes none of the {size} channels of the model's MLPs, which "
            f"go in steps of {1 if size % CHANNELS else CHANNELS}. {advice}.",
            param="sparsity",
        )
    return kept


def check_heads(model: "PreTrainedModel", share: float) -> int:
    """Return how many key-value groups stay without this share; the weights are not looked at.

    Raises:
        InvalidInput: none would go, or the attention is not built like a Llama's.
    """
    matrices_of(model, *(f"self_attn.{each}_proj" for each in "oqkv"))
    groups: int = model.config.num_key_value_heads
    kept = _count_kept(groups, share, 1)
    if kept == groups:
        least = _least_share(groups, 1)
        advice = f"Set 'sparsity' to {least:g} or more" if least < 1 else "Prune with 'mlp'"
        raise InvalidInput(
            f"A share of {share:g} removes none of the model's {groups} key-value groups. "
            f"{advice}.",
            param="sparsity",
        )
    return kept


def _least_share(size: int, multiple: int) -> float:
    """Return the least share, in hundredths, that removes something; 1 where none does."""
    shares = (each / 100 for each in range(1, 100))
    return next((each for each in shares if _count_kept(size, each, multiple) < size), 1.0)


def _leave(
    part: str, model: "PreTrainedModel", windows: Tensor, choose: _Choice, progress: Progress
) -> list[Tensor]:
    """Refit each layer's matrix of this name to what is kept; return the kept parts by layer."""
    kept: list[Tensor] = []

    def visit(stage: Stage) -> None:
        for name, layer in stage.linears.items():
            if name.endswith(part):
                parts, inputs = choose(layer.weight, stage.inputs.gram)
                leave_inputs(layer, stage.inputs.gram, inputs)
                kept.append(parts)

    progress.start(len(decoder_layers(model)), "pruning")
    run_layers(model, windows, visit, done=progress.advance)
    return kept


def _highest(importance: Tensor, share: float, multiple: int) -> Tensor:
    """Return the places of the highest scores in ascending order, at least one multiple of them."""
    size = len(importance)
    kept = _count_kept(size, share, multiple)
    return torch.where(prune_lowest(importance, size - kept))[0]


def _count_kept(size: int, share: float, multiple: int) -> int:
    multiple = multiple if size % multiple == 0 else 1
    return max(1, round((1 - share) * size / multiple)) * multiple

"""Set single weights of a model to zero: every linear layer gets the same sparsity."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from turnmill.compression.calibration import Stage, decoder_layers, linears_of, run_layers
from turnmill.compression.distill.finetune import next_token_loss
from turnmill.compression.prune import scores
from turnmill.compression.prune.masks import Pattern, prune_matrix, prune_pattern, prune_rows
from turnmill.compression.prune.sparsegpt import sparsegpt
from turnmill.compression.step import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Method = Literal["magnitude", "taylor", "wanda", "sparsegpt"]


def prune_weights(
    model: "PreTrainedModel",
    windows: Tensor,
    method: Method,
    sparsity: float,
    pattern: Pattern | None,
    progress: Progress,
) -> None:
    """Prune the linear layers in place.

    Magnitude and Taylor scores compare the weights of a whole matrix, Wanda's those of a row.
    Wanda and SparseGPT go from layer to layer: each is calibrated on what the pruned ones say.

    Args:
        windows: calibration tokens, int64 `[n, length]`; magnitudes need none.
        pattern: N:M in place of the sparsity.
    """
    if method == "magnitude":
        found = {name: scores.magnitude(each.weight) for name, each in linears_of(model).items()}
    elif method == "taylor":
        progress.start(len(windows), "gradients")
        found = scores.taylor_scores(model, windows, next_token_loss, progress.advance)
    else:
        _prune_layer_by_layer(model, windows, method, sparsity, pattern, progress)
        return
    for name, layer in linears_of(model).items():
        by = found[name]
        _apply(layer, prune_pattern(by, pattern) if pattern else prune_matrix(by, sparsity))


def _prune_layer_by_layer(
    model: "PreTrainedModel",
    windows: Tensor,
    method: Method,
    sparsity: float,
    pattern: Pattern | None,
    progress: Progress,
) -> None:
    def visit(stage: Stage) -> None:
        gram = stage.inputs.gram
        for layer in stage.linears.values():
            if method == "sparsegpt":
                layer.weight.data = sparsegpt(layer.weight, gram, sparsity, pattern)
                continue
            by = scores.wanda(layer.weight, gram.diagonal().sqrt())
            _apply(layer, prune_pattern(by, pattern) if pattern else prune_rows(by, sparsity))

    progress.start(len(decoder_layers(model)[1]), "pruning")
    run_layers(model, windows, visit, done=progress.advance)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _apply(layer: nn.Linear, mask: Tensor) -> None:
    layer.weight.mul_(mask)

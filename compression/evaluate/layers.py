"""How far each linear layer's weights are from the original's."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def layer_errors(model: "PreTrainedModel", original: "PreTrainedModel") -> dict[str, float]:
    """Return ‖w − w₀‖ / ‖w₀‖ (Frobenius) of each linear layer, by its name.

    Infinite where it is no number, or where only the original is zero.

    Empty where the models have different layers: after a layer is dropped, names no longer mean
    the same layer. The output head is left out; so are layers whose weights are packed integers.
    """
    mine, theirs = _weights(model), _weights(original)
    if mine.keys() - theirs.keys() or model.config.num_hidden_layers != (
        original.config.num_hidden_layers
    ):
        return {}
    return {
        name: _relative(weight.float(), theirs[name].float())
        for name, weight in mine.items()
        if weight.shape == theirs[name].shape and weight.dtype.is_floating_point
    }


def _relative(weight: "Tensor", original: "Tensor") -> float:
    error, norm = float((weight - original).norm()), float(original.norm())
    if error == 0:
        return 0.0
    return error / norm if norm and math.isfinite(error) else math.inf


def _weights(model: "PreTrainedModel") -> dict:  # type: ignore[type-arg]
    from torch.nn import Linear

    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module is not model.get_output_embeddings()
    }

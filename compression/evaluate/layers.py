"""How far each linear layer's weights are from the original's."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_errors(model: "PreTrainedModel", original: "PreTrainedModel") -> dict[str, float]:
    """Return ‖w − w₀‖ / ‖w₀‖ (Frobenius) of each linear layer, by its name.

    Empty where the models have different layers: after a layer is dropped, names no longer mean
    the same layer. The output head is left out; so are layers whose weights are packed integers.
    """
    mine, theirs = _weights(model), _weights(original)
    if mine.keys() - theirs.keys() or model.config.num_hidden_layers != (
        original.config.num_hidden_layers
    ):
        return {}
    return {
        name: float((weight.float() - theirs[name].float()).norm() / theirs[name].float().norm())
        for name, weight in mine.items()
        if weight.shape == theirs[name].shape and weight.dtype.is_floating_point
    }


def _weights(model: "PreTrainedModel") -> dict:  # type: ignore[type-arg]
    from torch.nn import Linear

    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module is not model.get_output_embeddings()
    }

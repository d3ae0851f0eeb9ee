"""Which weights compression works on: the linear layers of the backbone, not its head."""

from typing import Any

from torch import nn


def linears(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers of the decoder or encoder layers, by their name in the model.

    Heads are left out: a language model's is tied to its embedding, a classifier's is tiny.
    """
    prefix = f"{model.base_model_prefix}."
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefix)
    }

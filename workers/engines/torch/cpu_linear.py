"""Linear layers on a CPU, their weights laid out once the way oneDNN multiplies them.

A plain matrix is either laid out anew at each call or multiplied as it is, and for a handful of
tokens (a step of a batch, and the last layer's large matrix above all) both take longer than the
product. https://uxlfoundation.github.io/oneDNN/dev_guide_inner_product.html ("Data Layouts")
"""

import torch
from torch import nn
from turnmill.workers.vendor.torch import linear, packed_weight, packs_bfloat16


class PackedLinear(nn.Module):  # type: ignore[misc]
    """As the `nn.Linear` it takes the place of. `weight` is oneDNN's, to be multiplied only."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = packed_weight(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states: [..., in]; the result: [..., out]."""
        return linear(states, self.weight, self.bias)


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers of a model on a CPU whose weights are not quantized."""
    if not torch.backends.mkldnn.is_available():
        return
    dtypes = {torch.float32}
    if packs_bfloat16():
        dtypes.add(torch.bfloat16)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.weight.dtype in dtypes:
                setattr(parent, name, PackedLinear(layer))

"""Holds on torch: oneDNN's linear layers, and what the processor is asked about.

torch's compiler uses the same operators, which have no public name.
"""

import torch

READ_IN = {"torch": "2.13.0"}
HOLDS = {
    "torch.cpu:_is_avx512_bf16_supported": "865c1929cc86",
    "torch.cpu:_is_amx_tile_supported": "b7b3bd44eec8",
}


def packed_weight(weight: torch.Tensor) -> torch.Tensor:
    """Lay a linear layer's weight out as oneDNN multiplies it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def linear(states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply states [..., in] by a packed weight; returns [..., out]."""
    return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")


def packs_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 weights on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computes_in_bfloat16() -> bool:
    """Whether this processor has AVX-512 BF16. Without it, 16 bits are slower than 32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def has_amx() -> bool:
    """Whether this processor multiplies tiles."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())

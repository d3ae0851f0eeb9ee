"""Linear layers that multiply packed int8 and int4 weights with torch's own CPU products.

torch's compiler uses the same operators; they have no public name and may change. Every packed
layer is therefore compared with the dequantized matrix when it is made, and the dequantized matrix
is used where the operator is missing or wrong.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from turnmill.compression.quantize.affine import Grid, PackedWeight

#: Group sizes that torch's int4 product knows.
INT4_GROUPS = (32, 64, 128, 256)

#: How far a packed product may be from the dequantized one, relative to its largest value.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 4e-2}


class Int8Linear(nn.Module):  # type: ignore[misc]
    """Multiply activations with int8 weights, one scale a row: `torch._weight_int8pack_mm`."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("integers", packed.integers.contiguous())
        self.register_buffer("scales", scales_by_row(packed).to(dtype))
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """states: [..., in]; the result: [..., out], of the same dtype."""
        rows = states.reshape(-1, states.shape[-1])
        product = torch._weight_int8pack_mm(rows, self.integers, self.scales)
        return _shaped(product, states, self.bias)


class Int4Linear(nn.Module):  # type: ignore[misc]
    """Multiply activations with int4 weights, a scale and a zero a group."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        unsigned = packed.integers.to(torch.int32) + 8
        zeros = torch.zeros_like(packed.scales) if packed.zeros is None else packed.zeros
        both = torch.stack([packed.scales, zeros], dim=-1).transpose(0, 1)
        self.group = int(packed.grid.group)
        self.register_buffer("nibbles", torch._convert_weight_to_int4pack_for_cpu(unsigned, 1))
        self.register_buffer("scales_and_zeros", both.contiguous().to(dtype))
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """states: [..., in]; the result: [..., out], of the same dtype."""
        rows = states.reshape(-1, states.shape[-1])
        product = torch._weight_int4pack_mm_for_cpu(
            rows, self.nibbles, self.group, self.scales_and_zeros
        )
        return _shaped(product, states, self.bias)


class W8A8Linear(nn.Module):  # type: ignore[misc]
    """Multiply int8 activations with int8 weights in int32: `torch._int_mm`.

    Each token's activations get a scale of their own when they arrive ("dynamic, per token").
    """

    def __init__(self, packed: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("integers", packed.integers.T.contiguous())
        self.register_buffer("scales", scales_by_row(packed))
        self.bias = bias

    def forward(self, states: Tensor) -> Tensor:
        """states: [..., in]; the result: [..., out], of the same dtype."""
        rows = states.reshape(-1, states.shape[-1])
        integers, scales = quantize_tokens(rows)
        product = torch._int_mm(integers, self.integers).float() * scales * self.scales
        return _shaped(product.to(states.dtype), states, self.bias)


def quantize_tokens(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 by its largest value: integers [..., in], float32 scales [..., 1]."""
    scales = rows.abs().amax(-1, keepdim=True).float() / 127.5
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scales).round().clamp(-128, 127).to(torch.int8), scales


def rounded_tokens(states: Tensor) -> Tensor:
    """Return the activations, [..., in], that `W8A8Linear` multiplies in their place."""
    integers, scales = quantize_tokens(states)
    return (integers * scales).to(states.dtype)


def scales_by_row(packed: PackedWeight) -> Tensor:
    """Return a copy of the scales, one a row, [out]: that of a whole matrix is repeated."""
    return packed.scales.flatten().repeat(len(packed.integers) // packed.scales.numel())


def pack_linears(
    model: nn.Module, packed: Mapping[str, PackedWeight], *, int8_activations: bool = False
) -> list[str]:
    """Replace the linear layers of these names by packed ones.

    Returns the names of those that stay dequantized, because torch here has no product for their
    grid or its product fails the comparison.
    """
    left = []
    for name, weight in packed.items():
        linear = model.get_submodule(name)
        layer = _packed_layer(weight, linear, int8_activations)
        if layer is None:
            left.append(name)
        else:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer)
    return left


def _packed_layer(
    packed: PackedWeight, linear: nn.Linear, int8_activations: bool
) -> nn.Module | None:
    kind = _kind_of(packed.grid, int8_activations)
    if kind is None:
        return None
    bias = None if linear.bias is None else linear.bias.detach()
    dtype = linear.weight.dtype
    try:
        layer = kind(packed, bias, dtype)
        return layer if is_right(layer, packed, bias, dtype) else None
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def _kind_of(
    grid: Grid, int8_activations: bool
) -> type[Int8Linear] | type[Int4Linear] | type[W8A8Linear] | None:
    if grid.bits == 8 and grid.symmetric and not isinstance(grid.group, int):
        return W8A8Linear if int8_activations else Int8Linear
    if grid.bits == 4 and grid.group in INT4_GROUPS and not int8_activations:
        return Int4Linear
    return None


@torch.no_grad()  # type: ignore[untyped-decorator]
def is_right(
    layer: nn.Module, packed: PackedWeight, bias: Tensor | None, dtype: torch.dtype
) -> bool:
    """Compare a packed layer with the dequantized product on four random vectors."""
    random = torch.Generator().manual_seed(0)
    states = torch.randn(4, packed.integers.shape[1], generator=random).to(dtype)
    seen = states.float()
    if isinstance(layer, W8A8Linear):
        seen = rounded_tokens(seen)
    expected = functional.linear(seen, packed.dense(), None if bias is None else bias.float())
    difference = (layer(states).float() - expected).abs().max()
    return bool(difference <= TOLERANCE.get(dtype, 4e-2) * expected.abs().max())


def _shaped(product: Tensor, states: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        product = product + bias
    return product.reshape(*states.shape[:-1], -1)

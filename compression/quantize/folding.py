"""Move scale from the activations of a linear layer into its weights, without changing the model.

(x / s) · (W·s)ᵀ = x·Wᵀ: the division of x goes into what computes x, a norm or the rows of an
earlier linear layer. AWQ and SmoothQuant differ in how they choose s.
"""

import torch
from torch import Tensor, nn

from turnmill.compression.calibration import Stage

#: By the name of a stage's first linear layer, what computes the stage's inputs channel by channel,
#: in the family of Llama, Mistral and Qwen. Attention mixes tokens, not channels, but with grouped
#: heads o_proj reads each channel of v_proj several times: such a stage is left alone.
SOURCES = {
    "q_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "down_proj": "mlp.up_proj",
    "o_proj": "self_attn.v_proj",
}


@torch.no_grad()  # type: ignore[untyped-decorator]
def fold(stage: Stage, factors: Tensor) -> bool:
    """Multiply the columns of a stage's linear layers by factors [in], and divide their inputs.

    Returns whether it was possible: False leaves the model as it was.
    """
    source = source_of(stage)
    if source is None:
        return False
    _divide(source, factors)
    for linear in stage.linears.values():
        linear.weight.mul_(factors.to(linear.weight.dtype))
    stage.inputs.divide(factors)
    return True


def source_of(stage: Stage) -> nn.Module | None:
    """Return the norm or linear layer whose output a division can be folded into, if any."""
    first = next(iter(stage.linears))
    path = SOURCES.get(first.rpartition(".")[2])
    if path is None:
        return None
    try:
        source = stage.layer.get_submodule(path)
    except AttributeError:
        return None
    size = stage.inputs.absmax.numel()
    if isinstance(source, nn.Linear):
        return source if source.out_features == size else None
    return source if _scales_by_its_weight(source, size) else None


def _scales_by_its_weight(norm: nn.Module, size: int) -> bool:
    """Try whether half the weight gives half the output: not so where a norm adds 1 to it."""
    weight = getattr(norm, "weight", None)
    if weight is None or weight.shape != (size,) or getattr(norm, "bias", None) is not None:
        return False
    states = torch.linspace(-2, 2, size, dtype=weight.dtype).unsqueeze(0)
    whole = norm(states)
    weight.mul_(0.5)
    half = norm(states)
    weight.mul_(2)
    return bool(torch.allclose(half * 2, whole, rtol=1e-2, atol=1e-4))


def _divide(source: nn.Module, factors: Tensor) -> None:
    factors = factors.to(source.weight.dtype)
    if isinstance(source, nn.Linear):
        source.weight.div_(factors.unsqueeze(1))
        if source.bias is not None:
            source.bias.div_(factors)
    else:
        source.weight.div_(factors)

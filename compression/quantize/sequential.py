"""Quantize a model decoder layer by decoder layer, on what the compressed layers before it say."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from turnmill.compression.calibration import Stage, linears_of, run_layers
from turnmill.compression.quantize.affine import PackedWeight
from turnmill.compression.quantize.finished import FinishedLayers, Quantized
from turnmill.compression.quantize.folding import fold
from turnmill.compression.quantize.gptq import Rounded

#: From a matrix [out, in] and the gram of its inputs to its integers.
Rounding = Callable[[Tensor, Tensor], Rounded]

#: From a stage to the factors [in] that its inputs are divided by.
Scaling = Callable[[Stage], Tensor]


def quantize_layers(
    model: nn.Module,
    windows: Tensor,
    rounding: Rounding,
    scaling: Scaling | None = None,
    *,
    finished: FinishedLayers | None = None,
    done: Callable[[], None] = lambda: None,
) -> Quantized:
    """Round every linear layer of the model's layers in place, and return the integers.

    All scalings of a decoder layer are folded in before any of its matrices is rounded: the factors
    of one stage may go into the rows of another's.

    Args:
        finished: where each decoder layer is kept once it is rounded. Those that an earlier run
            kept are restored, not rounded again.
        done: called after each decoder layer that this call rounds.
    """
    result = Quantized()
    kept = list(finished.restore(model)) if finished else []
    for each in kept:
        result.add(each)
    stages: list[Stage] = []

    def visit(stage: Stage) -> None:
        stages.append(stage)
        if not stage.is_last:
            return
        if scaling is not None:
            for each in stages:
                fold(each, scaling(each))
        rounded = Quantized()
        for each in stages:
            _round(each, rounding, rounded)
        if finished:
            finished.keep(stage.index, stage.layer, rounded)
        result.add(rounded)
        stages.clear()

    run_layers(model, windows, visit, first=len(kept), done=done)
    return result


def _round(stage: Stage, rounding: Rounding, result: Quantized) -> None:
    gram = stage.inputs.gram
    for name, linear in stage.linears.items():
        weight = linear.weight.float()
        rounded = rounding(weight, gram)
        size = float(((weight @ gram) * weight).sum())
        result.packed[name] = rounded.weight
        result.errors[name] = rounded.error / size if size else 0.0
        if rounded.error == rounded.nearest_error:
            result.fallbacks.append(name)
        linear.weight.copy_(rounded.weight.dense().to(linear.weight.dtype))


@torch.no_grad()  # type: ignore[untyped-decorator]
def round_layers(model: nn.Module, round_one: Callable[[Tensor], PackedWeight]) -> Quantized:
    """Round every linear layer of the model's layers in place, without data.

    An error is ‖W − Ŵ‖² relative to ‖W‖².
    """
    result = Quantized()
    for name, linear in linears_of(model).items():
        weight = linear.weight.float()
        packed = result.packed[name] = round_one(weight)
        size = float(weight.square().sum())
        result.errors[name] = float((weight - packed.dense()).square().sum()) / size if size else 0
        linear.weight.copy_(packed.dense().to(linear.weight.dtype))
    return result

"""AWQ: protect the channels whose activations are large, by scaling them before rounding.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
https://arxiv.org/abs/2306.00978: s = mean(|x|)^α by channel, with the α of the least output error.
"""

import torch
from torch import Tensor

from turnmill.compression.calibration import Stage
from turnmill.compression.quantize.affine import Grid, dequantize, quantize
from turnmill.compression.quantize.gptq import output_error
from turnmill.compression.quantize.observers import minmax

#: The α that are tried; 0 is no scaling.
ALPHAS = tuple(step / 20 for step in range(20))


def best_factors(stage: Stage, grid: Grid) -> Tensor:
    """Return the factors [in] that cost least error in the stage's outputs after rounding."""
    gram = stage.inputs.gram
    best = torch.ones_like(stage.inputs.absmean)
    least = float("inf")
    for alpha in ALPHAS:
        factors = normalized(stage.inputs.absmean.clamp(min=1e-4) ** alpha)
        error = sum(
            output_error(linear.weight, _rounded(linear.weight, factors, grid), gram)
            for linear in stage.linears.values()
        )
        if error < least:
            best, least = factors, error
    return best


def normalized(factors: Tensor) -> Tensor:
    """Divide factors so that the largest and the smallest are each other's inverse."""
    return factors / (factors.max() * factors.min()).sqrt()


def _rounded(weight: Tensor, factors: Tensor, grid: Grid) -> Tensor:
    """Round the scaled matrix, and scale it back: float32 [out, in]."""
    scaled = weight.float() * factors
    scales = minmax(scaled, grid)
    return dequantize(quantize(scaled, *scales, grid), *scales, grid) / factors

"""SmoothQuant: move the outliers of activations into the weights, so that both fit 8 bits.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", https://arxiv.org/abs/2211.10438: s = max|x|^α / max|w|^(1 − α) by input channel.
"""

import torch
from torch import Tensor

from turnmill.compression.calibration import Stage


def smoothing_factors(stage: Stage, alpha: float) -> Tensor:
    """Return the factors [in] by which the stage's inputs are divided and its weights multiplied.

    alpha: 0 leaves all outliers to the activations, 1 moves all of them into the weights.
    """
    weights = [linear.weight.float().abs().amax(0) for linear in stage.linears.values()]
    largest = torch.stack(weights).amax(0).clamp(min=1e-5)
    factors = stage.inputs.absmax.clamp(min=1e-5) ** alpha / largest ** (1 - alpha)
    return factors.clamp(min=1e-5)

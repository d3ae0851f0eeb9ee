"""Round-to-nearest: each weight to the nearest number of its grid, without looking at data."""

from torch import Tensor

from turnmill.compression.quantize.affine import Grid, PackedWeight, quantize
from turnmill.compression.quantize.observers import OBSERVERS, ObserverName, storable


def round_to_nearest(weight: Tensor, grid: Grid, observer: ObserverName = "mse") -> PackedWeight:
    """Quantize a matrix [out, in] with the scales that the observer chooses."""
    scales = storable(OBSERVERS[observer](weight, grid))
    return PackedWeight(quantize(weight, *scales, grid), *scales, grid)

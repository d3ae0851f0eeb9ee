"""What a reader must know to read a row's figures, in sentences."""

from collections.abc import Mapping

from turnmill.compression.evaluate.speed import Speed

#: Rounding a weight to bfloat16 errs by at most 2⁻⁹ of it; honest 4-bit grids err by 0.1.
_STORAGE_ERROR = 2**-8

#: Linear layers of at most 4 bits: int4 artifacts are below this share of 16 bits.
_FOUR_BITS = 0.55

#: Differences of speed below this are the machine's noise.
_NOISE = 1.05


def remarks_of(
    *,
    quantization: str | None,
    size: float,
    layer_errors: Mapping[str, float],
    dialogue: float,
    speed: Speed | None = None,
    original_speed: Speed | None = None,
) -> tuple[str, ...]:
    """Return what must be said beside a row: meaningless ratios, adaptation, missing speed."""
    said = []
    if quantization and size < _FOUR_BITS and has_no_error(layer_errors):
        said.append(
            "The quantizer's error is exactly zero: the original's weights already lie on this "
            "grid. Its ratios say nothing about this method; measure it on another model."
        )
    if dialogue < 1 / _NOISE:
        said.append(
            "The perplexity on dialogue is below the original's: the model has adapted to the "
            "tuning domain. Read what was recovered from the column of prose."
        )
    if speed and quantization == "gguf":
        said.append(
            "Its weights were dequantized to measure it: the speed is not that of an engine that "
            "computes with the packed weights (`turnmill bench engine`)."
        )
    elif speed and original_speed and quantization:
        said += _slower(speed, original_speed)
    return tuple(said)


def has_no_error(layer_errors: Mapping[str, float]) -> bool:
    """Tell whether no layer's weights differ from the original's by more than storage rounds."""
    return bool(layer_errors) and max(layer_errors.values()) <= _STORAGE_ERROR


def _slower(speed: Speed, original: Speed) -> list[str]:
    ratios = {1: speed.batch_1 / original.batch_1, 8: speed.batch_8 / original.batch_8}
    slow = [f"{ratio:.2f}× at batch {batch}" for batch, ratio in ratios.items() if ratio < _NOISE]
    if not slow:
        return []
    return [f"Not faster than the original on this machine: {', '.join(slow)}."]

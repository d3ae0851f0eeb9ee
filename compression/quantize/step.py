"""The step `quantize`: fewer bits for the weights, and where asked for the activations."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnmill.compression.calibration import (
    Stage,
    check_linears,
    decoder_layers,
    linears_of,
    skeleton_of,
)
from turnmill.compression.distill.written import written_windows
from turnmill.compression.quantize.affine import Grid, PackedWeight, quantize
from turnmill.compression.quantize.awq import best_factors
from turnmill.compression.quantize.finished import FinishedLayers, Quantized
from turnmill.compression.quantize.gptq import PRUNED_FROM, Rounded, gptq, output_error
from turnmill.compression.quantize.observers import ObserverName, mse, storable
from turnmill.compression.quantize.rtn import round_to_nearest
from turnmill.compression.quantize.sequential import quantize_layers, round_layers
from turnmill.compression.quantize.smoothquant import smoothing_factors
from turnmill.compression.step import Options, Progress, State, WeightFormat
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Method = Literal["rtn", "gptq", "awq", "awq-gptq", "smoothquant", "bnb-int8", "bnb-nf4"]

#: Methods that look at the calibration windows.
CALIBRATED = ("gptq", "awq", "awq-gptq", "smoothquant")


class QuantizeOptions(Options):
    """How weights are rounded, on symmetric grids, which transformers, vLLM and GGUF all read."""

    #: `rtn`: to nearest, without data. `gptq`: rounding errors are passed on to later columns.
    #: `awq`: channels with large activations are protected. `awq-gptq`: both. `smoothquant`: int8
    #: weights and activations. `bnb-…`: LLM.int8 and NF4 of bitsandbytes.
    method: Method = "gptq"
    #: Of a weight. `bnb-…` and `smoothquant` decide it themselves.
    bits: Literal[4, 8] = 4
    #: Weights that share a scale: a divisor of every layer's width. By default 64 for 4 bits, and
    #: the whole row for 8.
    group: int | None = Field(None, ge=8)
    #: Of an activation: 8 rounds each token's to int8 when it arrives.
    activations: Literal[8, 16] = 16
    #: How `rtn` chooses scales; methods with calibration minimise the weighted squared error.
    observer: ObserverName = "mse"
    #: What GPTQ adds to the diagonal of the inputs' gram matrix, as a share of its mean.
    damping: float = Field(0.01, gt=0, le=1)
    #: Windows that the base model writes itself, to calibrate on beside the dialogues: calibrating
    #: on dialogues alone costs quality on other texts.
    generated: int = Field(0, ge=0)
    #: How much of the activations' outliers SmoothQuant moves into the weights.
    alpha: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.format == "w8a8" and self.group:
            raise ValueError("int8 activations need one scale a row: leave out group")
        if self.activations == 8 and self.bits != 8 and self.method != "smoothquant":
            raise ValueError("int8 activations need int8 weights: set bits = 8")
        return self

    def check(self, config: "PretrainedConfig") -> "PretrainedConfig":
        model = skeleton_of(config)
        is_ours = not self.method.startswith("bnb")
        if is_ours or linears_of(model):  # bitsandbytes rounds GPT-2's `Conv1D`, too.
            check_linears(model)
        if is_ours:
            check_groups(model, self.grid)
        return config

    @property
    def grid(self) -> Grid:
        if self.format in ("w8a8", "int8"):
            return Grid(8, group=self.group or "channel")
        return Grid(self.bits, group=self.group or 64)

    @property
    def format(self) -> WeightFormat:
        if self.method == "bnb-int8":
            return "bnb-int8"
        if self.method == "bnb-nf4":
            return "bnb-nf4"
        if self.method == "smoothquant" or self.activations == 8:
            return "w8a8"
        return "int4" if self.bits == 4 else "int8"


class Quantize:
    options = QuantizeOptions

    def __call__(
        self, state: State, options: QuantizeOptions, progress: Progress
    ) -> Mapping[str, object]:
        # Of weights that were rounded before, most zeros are rounded ones.
        pruned = state.pruned if state.packed else pruned_linears(state.model)
        state.become_dense()
        state.format = options.format
        if options.method.startswith("bnb"):
            return {"method": options.method, "library": "bitsandbytes"}
        check_groups(state.model, options.grid)
        state.model.float()
        result = quantize_model(state, options, progress)
        state.packed, state.pruned = result.packed, pruned
        return {
            "method": options.method,
            "bits": options.grid.bits,
            "group": options.grid.group,
            "bytes": sum(weight.bytes for weight in result.packed.values()),
            "errors": {name: round(error, 6) for name, error in result.errors.items()},
            "fallbacks": result.fallbacks if "gptq" in options.method else [],
        }


def pruned_linears(model: "PreTrainedModel") -> frozenset[str]:
    """Return the names of the linear layers that count as pruned."""
    return frozenset(
        name
        for name, linear in linears_of(model).items()
        if (linear.weight == 0).float().mean() >= PRUNED_FROM
    )


def check_groups(model: "PreTrainedModel", grid: Grid) -> None:
    """Refuse groups that do not divide the width of every linear layer.

    Raises:
        InvalidInput: naming the first layer that does not fit.
    """
    if not isinstance(grid.group, int):
        return
    for name, linear in linears_of(model).items():
        if linear.in_features % grid.group:
            raise InvalidInput(
                f"Groups of {grid.group} weights do not divide the {linear.in_features} inputs of "
                f"{name}. Set 'group' to a divisor of every layer's width, such as 32.",
                param="group",
            )


def quantize_model(state: State, options: QuantizeOptions, progress: Progress) -> Quantized:
    """Round the state's model in place by the method of the options.

    A run that was killed resumes after the last decoder layer that it finished.
    """
    if options.method not in CALIBRATED:
        progress.note(f"rounding {len(linears_of(state.model))} linear layers to nearest")
        nearest = partial(round_to_nearest, grid=options.grid, observer=options.observer)
        rounded: Quantized = round_layers(state.model, nearest)
        return rounded
    windows = calibration_windows(state, options.generated, progress)
    identity = [options.model_dump(mode="json"), state.texts.digest, state.seed]
    finished = FinishedLayers(state.folder / "layers", identity)
    progress.start(len(decoder_layers(state.model)[1]), f"quantizing, {options.method}")
    progress.advance(finished.count())
    result: Quantized = quantize_layers(
        state.model,
        windows,
        partial(_rounding, options),
        partial(_scaling, options) if options.method != "gptq" else None,
        finished=finished,
        done=progress.advance,
    )
    return result


def calibration_windows(state: State, generated: int, progress: Progress) -> Tensor:
    """Return the dialogues to calibrate on, and so many windows of the base model's own text."""
    windows = state.texts.calibration
    if not generated:
        return windows
    written = written_windows(
        state.teacher,
        generated,
        windows.shape[1],
        vocabulary=len(state.tokenizer),
        seed=state.seed,
        path=state.folder / "written.pt",
        progress=progress,
    )
    return torch.cat([windows, written])


def _rounding(options: QuantizeOptions, weight: Tensor, gram: Tensor) -> Rounded:
    if "gptq" in options.method:
        return gptq(weight, gram, options.grid, options.damping)
    scales = storable(mse(weight, options.grid, gram.diagonal()))
    nearest = PackedWeight(quantize(weight, *scales, options.grid), *scales, options.grid)
    error = output_error(weight, nearest.dense(), gram)
    return Rounded(nearest, error, error)


def _scaling(options: QuantizeOptions, stage: Stage) -> Tensor:
    if options.method == "smoothquant":
        return smoothing_factors(stage, options.alpha)
    return best_factors(stage, options.grid)

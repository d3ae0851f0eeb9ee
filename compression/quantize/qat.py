"""The step `qat`: train a quantized model while it computes with its rounded weights.

Rounding has no useful gradient. The straight-through estimator (Bengio et al.,
https://arxiv.org/abs/1308.3432) passes the gradient of a rounded weight on to the weight itself,
and that of a rounded activation (W8A8) on to the activation. Scales learn with it (LSQ, Esser et
al., https://arxiv.org/abs/1902.08153).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from turnmill.compression.calibration import linears_of
from turnmill.compression.distill import lora
from turnmill.compression.distill.step import DistillOptions, learn
from turnmill.compression.quantize.affine import PackedWeight, quantize
from turnmill.compression.quantize.layers import rounded_tokens
from turnmill.compression.step import Progress, State
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


class QatOptions(DistillOptions):
    """What is trained, with hard labels and the base model's soft ones."""

    #: `weights`: all of them, and the scales. `scales`: the integers stay, and the scales, norms
    #: and biases learn. With `lora`, adapters move the weights before they are rounded.
    train: Literal["weights", "scales"] = "weights"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.layers is not None or self.student is not None:
            raise ValueError("a quantized model learns as it is: leave out layers and student")
        if self.teacher == "current":
            raise ValueError("a quantized model learns from the recipe's base: leave out teacher")
        if self.l1:
            raise ValueError("quantized weights have no L1 penalty: leave out l1")
        if self.lora and self.train == "scales":
            raise ValueError("adapters train the weights: leave out lora or train")
        return self


class Rounding(nn.Module):  # type: ignore[misc]
    """Round a weight to its grid, with gradients for the weight and for the scales.

    A weight outside the grid's range gets no gradient. Scales are trained by their logarithm, so
    that one learning rate suits them all, and are rounded to bfloat16, as they are saved. With
    `keep_zeros`, weights whose integer is zero stay zero and get no gradient.
    """

    def __init__(self, packed: PackedWeight, *, keep_zeros: bool = False) -> None:
        super().__init__()
        self.grid = packed.grid
        self.kept = packed.integers != 0 if keep_zeros else None
        self.log_scales = nn.Parameter(packed.scales.log())

    def forward(self, weight: Tensor) -> Tensor:
        scales = straight_through(self.log_scales.exp(), Tensor.bfloat16).unsqueeze(-1)
        parts = (self.grid.split(weight) / scales).clamp(self.grid.low, self.grid.high)
        rounded = (straight_through(parts, torch.round) * scales).reshape(weight.shape)
        return rounded if self.kept is None else rounded * self.kept

    def pack(self, weight: Tensor) -> PackedWeight:
        """Return the integers and scales that the forward pass computes with."""
        scales = self.log_scales.detach().exp().bfloat16().float()
        integers = quantize(weight, scales, None, self.grid)
        if self.kept is not None:
            integers *= self.kept
        return PackedWeight(integers, scales, None, self.grid)


def straight_through(values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Round the values, and pass their gradient on as if they had not been rounded."""
    return values + (rounding(values).float() - values).detach()


class Qat:
    options = QatOptions

    def __call__(
        self, state: State, options: QatOptions, progress: Progress
    ) -> Mapping[str, object]:
        if not state.packed or any(each.zeros is not None for each in state.packed.values()):
            raise InvalidInput(
                "The step 'qat' trains a model that is quantized already: put a step 'quantize' "
                "with another method than bitsandbytes' before it.",
                param="kind",
            )
        state.model.float()
        kept = state.pruned if options.keep_zeros else frozenset()
        roundings = {
            name: Rounding(packed, keep_zeros=name in kept) for name, packed in state.packed.items()
        }
        # The roundings keep the zeros; adapters are attached here, with their rounding.
        plain = options.model_copy(update={"keep_zeros": False, "lora": None})
        rounded = _adapted if options.lora else _parametrized
        with rounded(state.model, roundings, options) as network, _rounded_inputs(state):
            student = replace(state, model=network, packed={})
            told = dict(learn(student, state.teacher, plain, progress, state.folder))
        moved = 0
        for name, linear in linears_of(state.model).items():
            packed = roundings[name].pack(linear.weight.detach())
            moved += int((packed.integers != state.packed[name].integers).sum())
            state.packed[name] = packed
            linear.weight.data = packed.dense()
        return {**told, "integers_changed": moved}


@contextmanager
def _parametrized(
    model: "PreTrainedModel", roundings: Mapping[str, Rounding], options: QatOptions
) -> "Iterator[PreTrainedModel]":
    """Let the linear layers compute with rounded weights; leave the trained ones in place."""
    linears = linears_of(model)
    for name, linear in linears.items():
        parametrize.register_parametrization(linear, "weight", roundings[name])
        linear.parametrizations.weight.original.requires_grad_(options.train == "weights")
    yield model
    for linear in linears.values():
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


@contextmanager
def _adapted(
    model: "PreTrainedModel", roundings: Mapping[str, Rounding], options: QatOptions
) -> "Iterator[PreTrainedModel]":
    """Let adapters move the weights before they are rounded; leave the sums in place."""
    names = list(linears_of(model))
    network = lora.attach(model, options.lora or 1)
    for name in names:
        layer = model.get_submodule(name)
        layer.rounding = roundings[name]
        layer.forward = _rounded_sum(layer)
    yield network
    for name in names:
        del model.get_submodule(name).forward
    lora.merge(network)


@contextmanager
def _rounded_inputs(state: State) -> Iterator[None]:
    """Let the linear layers of a W8A8 model read activations as they are rounded when served."""

    def round_input(_: nn.Module, args: tuple[Tensor]) -> Tensor:
        return straight_through(args[0], rounded_tokens).to(args[0].dtype)

    names = state.packed if state.format == "w8a8" else ()
    hooks = [
        state.model.get_submodule(name).register_forward_pre_hook(round_input) for name in names
    ]
    yield
    for hook in hooks:
        hook.remove()


def _rounded_sum(layer: "LoraLayer") -> Callable[[Tensor], Tensor]:
    def forward(states: Tensor) -> Tensor:
        weight = layer.base_layer.weight + layer.get_delta_weight("default")
        return functional.linear(states, layer.rounding(weight), layer.base_layer.bias)

    return forward

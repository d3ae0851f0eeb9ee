"""Calibration: what the linear layers of a model read, decoder layer by decoder layer.

The runner is sequential, as GPTQ's authors describe: once a decoder layer is compressed, the next
one is calibrated on what the compressed layer says, so that later layers can make up for the
errors of earlier ones. One decoder layer's activations are in memory at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Inputs:
    """Statistics of the vectors that a linear layer reads, float32.

    gram: [in, in], the mean of x·xᵀ. absmax, absmean: [in], of |x| by channel.
    """

    def __init__(self, size: int) -> None:
        self.tokens = 0
        self.absmax = torch.zeros(size)
        self._abssum = torch.zeros(size)
        self._products = torch.zeros(size, size)

    def add(self, states: Tensor) -> None:
        """Count the vectors of a batch, [..., in]."""
        rows = states.detach().reshape(-1, states.shape[-1]).float()
        self.tokens += len(rows)
        self.absmax = torch.maximum(self.absmax, rows.abs().amax(0))
        self._abssum += rows.abs().sum(0)
        self._products.addmm_(rows.T, rows)

    @property
    def gram(self) -> Tensor:
        return self._products / max(self.tokens, 1)

    @property
    def absmean(self) -> Tensor:
        return self._abssum / max(self.tokens, 1)

    def divide(self, factors: Tensor) -> None:
        """Follow a division of the vectors by factors [in]."""
        self.absmax /= factors
        self._abssum /= factors
        self._products /= torch.outer(factors, factors)


@dataclass(frozen=True)
class Stage:
    """The linear layers of one decoder layer that read the same vectors: q, k and v, for example.

    linears: by their names in the model. layer: the decoder layer they belong to. is_last: no
    later stage of this decoder layer follows.
    """

    index: int
    layer: nn.Module
    linears: Mapping[str, nn.Linear]
    inputs: Inputs
    is_last: bool


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a model's layers: its longest list of modules.

    Raises:
        ValueError: the model has no list of modules.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers to compress one by one.")
    return max(lists, key=lambda item: len(item[1]))


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers inside the model's layers, by name: neither head nor embedding."""
    prefix, layers = decoder_layers(model)
    return {
        f"{prefix}.{name}": module
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


#: Of a model's layers; a model of which less is compressed is called smaller than it is.
_LEAST_SHARE = 0.5


def skeleton_of(config: "PretrainedConfig") -> "PreTrainedModel":
    """Return the model of a configuration without weights, to look at its layers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def check_linears(model: "PreTrainedModel") -> None:
    """Refuse a model whose linear layers are not most of its layers' weights, which may be absent.

    Raises:
        InvalidInput: there are none (GPT-2's matrices are `Conv1D`), or most weights are in tensors
            of another kind, as the experts of mixtures are.
    """
    linears = {id(each.weight): each.weight.numel() for each in linears_of(model).values()}
    matrices = {id(each): each for each in decoder_layers(model)[1].parameters() if each.ndim > 1}
    share = sum(linears.values()) / max(1, sum(each.numel() for each in matrices.values()))
    if not linears:
        raise InvalidInput(
            f"Models of the architecture '{model.config.model_type}' have no linear layers "
            "(torch.nn.Linear) to quantize or prune. Of them only 'finetune', 'distill' and the "
            "methods 'bnb-int8' and 'bnb-nf4' of 'quantize' can be used.",
            param="model",
        )
    if share < _LEAST_SHARE:
        raise InvalidInput(
            f"In models of the architecture '{model.config.model_type}' linear layers "
            f"(torch.nn.Linear), which alone are quantized and pruned, are {share:.0%} of the "
            "layers' weights: those of the experts are in tensors of another kind. 'finetune', "
            "'distill' and 'drop-layers' can be used.",
            param="model",
        )


@torch.no_grad()  # type: ignore[untyped-decorator]
def run_layers(
    model: nn.Module,
    windows: Tensor,
    visit: Callable[[Stage], None],
    *,
    batch: int = 8,
    first: int = 0,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Show `visit` every stage of every decoder layer, in order; it may change the weights.

    Args:
        windows: int64 [n, length], token ids without padding.
        batch: windows a forward pass.
        first: the first decoder layer to visit; earlier ones only pass their activations on.
        done: called after each visited decoder layer.
    """
    training = model.training
    model.eval()
    prefix, layers = decoder_layers(model)
    try:
        calls = [_call_of(model, layers, ids) for ids in windows.split(batch)]
        for index, layer in enumerate(layers):
            if index >= first:
                for stage in _stages(index, f"{prefix}.{index}", layer, calls):
                    visit(stage)
            for call in calls:
                call.states = call.run(layer, index)
            if index >= first:
                done()
    finally:
        model.train(training)


@dataclass
class _Call:
    """One batch on its way through the layers: its hidden states, and each layer's other arguments.

    Layers differ in these where some attend to a window and others to everything (Gemma 3).
    """

    states: Tensor
    arguments: list[dict[str, object]]

    def run(self, layer: nn.Module, index: int) -> Tensor:
        result = layer(self.states, **self.arguments[index])
        states: Tensor = result if isinstance(result, Tensor) else result[0]
        return states


class _LastLayerReached(Exception):
    pass


def _call_of(model: nn.Module, layers: nn.ModuleList, ids: Tensor) -> _Call:
    """Run the model up to its last decoder layer and return the arguments of all layers."""
    first: list[Tensor] = []
    arguments: list[dict[str, object]] = []

    def note(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        rest = dict(kwargs)
        states = args[0] if args else rest.pop("hidden_states")
        if isinstance(states, Tensor) and not first:
            first.append(states)
        arguments.append(rest)
        if layer is layers[-1]:
            raise _LastLayerReached

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        model(input_ids=ids, use_cache=False)
    except _LastLayerReached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(arguments) != len(layers):
        raise ValueError(f"{type(model).__name__} does not run its layers one by one on token ids.")
    return _Call(first[0], arguments)


def _stages(index: int, name: str, layer: nn.Module, calls: list[_Call]) -> Iterator[Stage]:
    linears = {f"{name}.{n}": m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
    inputs = {
        group: Inputs(linears[group[0]].in_features)
        for group in _readers(linears, layer, index, calls[0])
    }
    with _recording(linears, inputs):
        for call in calls:
            call.run(layer, index)
    last = list(inputs)[-1]
    for group, seen in inputs.items():
        yield Stage(index, layer, {n: linears[n] for n in group}, seen, group == last)


def _readers(
    linears: dict[str, nn.Linear], layer: nn.Module, index: int, call: _Call
) -> list[tuple[str, ...]]:
    """Group the linear layers by the tensor that they read, in the order in which they run."""
    readers: dict[int, list[str]] = {}
    kept = []  # Ids are unique among living objects only.

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, args: tuple[Tensor]) -> None:
            kept.append(args[0])
            readers.setdefault(id(args[0]), []).append(name)

        return hook

    handles = [m.register_forward_pre_hook(note(n)) for n, m in linears.items()]
    try:
        call.run(layer, index)
    finally:
        for handle in handles:
            handle.remove()
    return [tuple(names) for names in readers.values()]


@contextmanager
def _recording(
    linears: dict[str, nn.Linear], inputs: dict[tuple[str, ...], Inputs]
) -> Iterator[None]:
    """Count what the first linear layer of each group reads."""

    def count(seen: Inputs) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, args: seen.add(args[0])

    handles = [
        linears[group[0]].register_forward_pre_hook(count(seen)) for group, seen in inputs.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

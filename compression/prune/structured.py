"""Structured pruning: cut whole MLP channels, key-value groups of heads, or layers out of a model.

Unlike masks, this makes matrices smaller: the model takes less memory, disk and time on any
hardware, and is an ordinary checkpoint with other numbers in its config. The functions return a
new model of the same class. They know the decoder layers of Llama, Mistral, Qwen and SmolLM:
`model.layers[i].mlp.{gate,up,down}_proj` and `.self_attn.{q,k,v,o}_proj`.
"""

import copy
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

#: Share of the mean diagonal added before a least-squares system is solved.
_RIDGE = 1e-3
_LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")


def decoder_layers(model: "PreTrainedModel") -> nn.ModuleList:
    """Return the decoder layers.

    Raises:
        InvalidInput: the model is not built like a Llama.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(layers[0], "self_attn"):
        raise _cannot_be_cut(model)
    return layers


def matrices_of(model: "PreTrainedModel", *names: str) -> list[nn.Linear]:
    """Return the linear layers of these names in the first decoder layer.

    Raises:
        InvalidInput: a decoder layer lacks one, such as a Phi's, or one of a mixture of experts.
    """
    for layer in decoder_layers(model):
        linears = {name for name, each in layer.named_modules() if isinstance(each, nn.Linear)}
        if not linears.issuperset(names):
            raise _cannot_be_cut(model)
    return [decoder_layers(model)[0].get_submodule(name) for name in names]


def _cannot_be_cut(model: "PreTrainedModel") -> InvalidInput:
    return InvalidInput(
        f"{type(model).__name__} cannot be cut: structured pruning knows models built like "
        "Llama (Llama, Mistral, Qwen, Gemma, SmolLM).",
        param="model",
    )


@torch.no_grad()  # type: ignore[untyped-decorator]
def block_influence(
    model: "PreTrainedModel", windows: Tensor, advance: Callable[[], None] = lambda: None
) -> list[float]:
    """Return how much each layer turns its input: 1 - mean cosine of input and output.

    ShortGPT (Men et al. 2024): a layer of low influence hands on what it was given.
    """
    layers = decoder_layers(model)
    total = torch.zeros(len(layers), dtype=torch.float64)

    def measure(place: int, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        after = output[0] if isinstance(output, tuple) else output
        turned = 1 - cosine_similarity(args[0].float(), after.float(), dim=-1)
        total[place] += turned.mean()

    hooks = [
        layer.register_forward_hook(lambda _, args, output, i=i: measure(i, args, output))
        for i, layer in enumerate(layers)
    ]
    try:
        for window in windows.split(1):
            model.base_model(input_ids=window, use_cache=False)
            advance()
    finally:
        for hook in hooks:
            hook.remove()
    return [float(each) for each in total / len(windows)]


def evenly_spaced(kept: int, layers: int) -> list[int]:
    """Return `kept` of the layers, evenly spaced, the first and the last among them."""
    if kept == 1:
        return [0]
    return [round(i * (layers - 1) / (kept - 1)) for i in range(kept)]


def keep_layers(model: "PreTrainedModel", kept: Sequence[int]) -> "PreTrainedModel":
    """Return the model with these of its layers, in their order.

    Raises:
        InvalidInput: there is no such layer, or none is kept.
    """
    config = config_of_layers(model, kept)
    layers = sorted(set(kept))
    place = {str(old): str(new) for new, old in enumerate(layers)}
    weights = {}
    for name, weight in model.state_dict().items():
        found = _LAYER.search(name)
        if found is None:
            weights[name] = weight
        elif found.group() in place:
            weights[_LAYER.sub(place[found.group()], name)] = weight
    return _rebuilt(model, weights, config)


def config_of_layers(model: "PreTrainedModel", kept: Sequence[int]) -> "PretrainedConfig":
    """Return the configuration of the model with these of its layers.

    Raises:
        InvalidInput: there is no such layer, or none is kept.
    """
    layers = sorted(set(kept))
    count = len(decoder_layers(model))
    if not layers or layers[0] < 0 or layers[-1] >= count:
        raise InvalidInput(
            f"Layers {list(kept)} cannot be kept: the model has the layers 0 … {count - 1}.",
            param="layers",
        )
    changes: dict[str, object] = {"num_hidden_layers": len(layers)}
    if getattr(model.config, "layer_types", None):
        changes["layer_types"] = [model.config.layer_types[i] for i in layers]
    return changed(model.config, **changes)


def channel_scores(down: Tensor, gram: Tensor) -> Tensor:
    """Return what each MLP channel adds to the output: ‖its activations‖ · ‖its column‖, `[in]`.

    Args:
        down: the weight of `down_proj`, `[hidden, channels]`.
        gram: XᵀX of its inputs, `[channels, channels]`.
    """
    return gram.diagonal().sqrt() * down.float().norm(dim=0)


def group_scores(out: Tensor, gram: Tensor, groups: int) -> Tensor:
    """Return what each key-value group of heads adds to the output of attention, `[groups]`.

    Args:
        out: the weight of `o_proj`, `[hidden, heads · head size]`.
        gram: XᵀX of its inputs.
    """
    each = out.shape[1] // groups
    parts = [slice(i * each, (i + 1) * each) for i in range(groups)]
    # ‖X_g W_gᵀ‖² = trace(W_g X_gᵀX_g W_gᵀ)
    return torch.stack(
        [
            torch.einsum("oi,ij,oj->", out[:, p].float(), gram[p, p], out[:, p].float())
            for p in parts
        ]
    )


def refit(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """Return the weight on the kept inputs alone whose outputs come closest to the full one's.

    The least-squares solution W · G[:, kept] · (G[kept, kept] + ridge)⁻¹ with G = XᵀX: the inputs
    that stay take up what they can of those that go.
    """
    small = gram[kept][:, kept].double()
    ridge = _RIDGE * small.diagonal().mean() + torch.finfo(torch.float32).tiny
    small += ridge * torch.eye(len(kept), dtype=small.dtype)
    # The weight plus a correction: with nothing pruned it stays as it is, bit for bit.
    gone = torch.ones(len(gram), dtype=torch.bool)
    gone[kept] = False
    moved = weight[:, gone].double() @ gram[gone][:, kept].double()
    correction = torch.linalg.solve(small, moved.T).T
    return (weight[:, kept].double() + correction).to(weight.dtype)


@torch.no_grad()  # type: ignore[untyped-decorator]
def leave_inputs(layer: nn.Linear, gram: Tensor, kept: Tensor) -> None:
    """Refit a linear layer to the kept inputs, in place, and set the weights of all others to 0."""
    fitted = refit(layer.weight, gram, kept)
    layer.weight.zero_()
    layer.weight[:, kept] = fitted


def cut_channels(model: "PreTrainedModel", kept: Sequence[Tensor]) -> "PreTrainedModel":
    """Return the model with these MLP channels of each layer, as many in every layer.

    Args:
        kept: a layer's channels to keep, int64, ascending.
    """
    weights = model.state_dict()
    for i, channels in enumerate(kept):
        mlp = f"{model.base_model_prefix}.layers.{i}.mlp"
        for name in ("gate_proj", "up_proj"):
            _take_rows(weights, f"{mlp}.{name}", channels)
        _take_columns(weights, f"{mlp}.down_proj", channels)
    return _rebuilt(model, weights, changed(model.config, intermediate_size=len(kept[0])))


def cut_groups(model: "PreTrainedModel", kept: Sequence[Tensor]) -> "PreTrainedModel":
    """Return the model with these key-value groups of each layer, as many in every layer.

    A group is one key head, one value head and the query heads that share them.

    Args:
        kept: a layer's groups to keep, int64, ascending.
    """
    config = model.config
    size = decoder_layers(model)[0].self_attn.head_dim
    heads = config.num_attention_heads // config.num_key_value_heads
    weights = model.state_dict()
    for i, groups in enumerate(kept):
        attention = f"{model.base_model_prefix}.layers.{i}.self_attn"
        queries = inputs_of(groups, heads * size)
        _take_rows(weights, f"{attention}.q_proj", queries)
        for name in ("k_proj", "v_proj"):
            _take_rows(weights, f"{attention}.{name}", inputs_of(groups, size))
        _take_columns(weights, f"{attention}.o_proj", queries)
    return _rebuilt(model, weights, config_of_groups(model, len(kept[0])))


def config_of_groups(model: "PreTrainedModel", kept: int) -> "PretrainedConfig":
    """Return the configuration of the model with so many of its key-value groups."""
    config = model.config
    return changed(
        config,
        head_dim=decoder_layers(model)[0].self_attn.head_dim,
        num_key_value_heads=kept,
        num_attention_heads=kept * (config.num_attention_heads // config.num_key_value_heads),
    )


def inputs_of(groups: Tensor, size: int) -> Tensor:
    """Return the positions of groups in a vector that holds `size` numbers of each group."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _take_rows(weights: dict[str, Tensor], layer: str, rows: Tensor) -> None:
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in weights:
            weights[name] = weights[name][rows]


def _take_columns(weights: dict[str, Tensor], layer: str, columns: Tensor) -> None:
    weights[f"{layer}.weight"] = weights[f"{layer}.weight"][:, columns]


def changed(config: "PretrainedConfig", **changes: object) -> "PretrainedConfig":
    """Return a copy of the configuration with other values."""
    copied = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def _rebuilt(
    model: "PreTrainedModel", weights: dict[str, Tensor], config: "PretrainedConfig"
) -> "PreTrainedModel":
    """Build a model of the same class from the changed config and weights."""
    rebuilt = type(model)(config).to(model.dtype)
    rebuilt.load_state_dict(weights)
    if model.can_generate():
        rebuilt.generation_config = copy.deepcopy(model.generation_config)
    return rebuilt.eval()

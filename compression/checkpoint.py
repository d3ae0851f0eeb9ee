"""Models and states of a pipeline on disk: loading gives the tensors that were saved."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnmill.compression.step import State, WeightFormat
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from turnmill.compression.quantize.affine import PackedWeight

#: What a step's folder holds.
MODEL = "model"
_PACKED, _STATE = "packed.safetensors", "state.json"


def load_model(folder: Path) -> "PreTrainedModel":
    """Load a causal language model in float32 on the CPU, ready to be compressed.

    Raises:
        InvalidInput: the folder is no checkpoint, its weights are quantized already, or one is NaN
            or infinite.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # It would be drawn across ours.
    config = folder / "config.json"
    if not config.is_file():
        raise InvalidInput(f"{folder} is no transformers checkpoint: it has no config.json.")
    if json.loads(config.read_text()).get("quantization_config"):
        raise InvalidInput(
            f"The model in {folder} is quantized already. Compress the model that it was made of."
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}
    )
    check_finite(model, folder)
    return model.eval()


def check_finite(model: "PreTrainedModel", folder: Path) -> None:
    """Refuse a model that holds NaN or infinite weights: nothing that it says is a number.

    Raises:
        InvalidInput: naming the first such tensor.
    """
    for name, value in model.named_parameters():
        if value.is_floating_point() and not value.isfinite().all():
            raise InvalidInput(
                f"The model in {folder} holds weights that are NaN or infinite, in '{name}'. "
                "Download or train it again.",
                param="model",
            )


def load_config(folder: Path) -> "PretrainedConfig":
    """Read what a checkpoint says of its model. Raises `InvalidInput` if the folder is none."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InvalidInput(f"{folder} is no transformers checkpoint: it has no config.json.")
    config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    return config


def check_context(config: "PretrainedConfig", length: int) -> None:
    """Refuse windows of more tokens than the model was made for: some cannot read them at all.

    Raises:
        InvalidInput: naming the longest window.
    """
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        raise InvalidInput(
            f"Windows of {length} tokens are longer than the model's context of {most}. Set "
            f"'length' of the windows to {most} or less (--window length={most}).",
            param="windows.length",
        )


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def save_model(state: State, folder: Path) -> None:
    """Save the state's model as its format says, with its tokenizer."""
    import torch

    if state.format == "dense":
        state.model.to(getattr(torch, state.dtype)).save_pretrained(folder)
    else:
        from turnmill.compression.quantize.save import save_quantized  # type: ignore[import-not-found,unused-ignore]

        state.model.to(getattr(torch, state.dtype))
        save_quantized(state, folder)
    state.tokenizer.save_pretrained(folder)


def save_state(state: State, told: Mapping[str, object], folder: Path) -> None:
    """Save what the next step works on, and what this step tells the report."""
    from safetensors.torch import save_file

    state.model.save_pretrained(folder / MODEL)
    state.tokenizer.save_pretrained(folder / MODEL)
    tensors, grids = tensors_of(state.packed)
    save_file(tensors, folder / _PACKED)
    content = {
        "format": state.format,
        "grids": grids,
        "pruned": sorted(state.pruned),
        "told": told,
    }
    (folder / _STATE).write_text(json.dumps(content))


def told_by(folder: Path) -> dict[str, object]:
    """Return what the step that left this folder told the report."""
    told: dict[str, object] = json.loads((folder / _STATE).read_text())["told"]
    return told


def format_of(folder: Path) -> WeightFormat:
    """Return how the model of the step that left this folder is saved."""
    found: WeightFormat = json.loads((folder / _STATE).read_text())["format"]
    return found


def restore_packed(state: State, folder: Path) -> None:
    """Give the state the integers and the format that the step of this folder left."""
    content = json.loads((folder / _STATE).read_text())
    state.packed = {}
    if content["grids"]:
        from safetensors.torch import load_file

        state.packed = packed_from(load_file(folder / _PACKED), content["grids"])
    state.format = content["format"]
    # Steps that an earlier release finished do not say.
    state.pruned = frozenset(content.get("pruned", ()))


def tensors_of(
    packed: "Mapping[str, PackedWeight]",
) -> "tuple[dict[str, Tensor], dict[str, dict[str, object]]]":
    """Return the tensors of packed weights by NAME:PART, and each weight's grid as JSON."""
    tensors, grids = {}, {}
    for name, weight in packed.items():
        tensors[f"{name}:integers"] = weight.integers.contiguous()
        tensors[f"{name}:scales"] = weight.scales.contiguous()
        if weight.zeros is not None:
            tensors[f"{name}:zeros"] = weight.zeros.contiguous()
        grids[name] = asdict(weight.grid)
    return tensors, grids


def packed_from(
    tensors: "Mapping[str, Tensor]", grids: Mapping[str, Mapping[str, Any]]
) -> "dict[str, PackedWeight]":
    """Return the packed weights that `tensors_of` took apart."""
    from turnmill.compression.quantize.affine import (  # type: ignore[import-not-found,unused-ignore]
        Grid,
        PackedWeight,
    )

    return {
        name: PackedWeight(
            tensors[f"{name}:integers"],
            tensors[f"{name}:scales"],
            tensors.get(f"{name}:zeros"),
            Grid(**grid),
        )
        for name, grid in grids.items()
    }

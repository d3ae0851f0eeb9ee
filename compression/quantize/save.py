"""Save quantized models as folders that transformers and vLLM load.

Our own integers go into the formats of compressed-tensors, https://github.com/vllm-project/compressed-tensors:
`pack-quantized` for weights of 4 and 8 bits with 16-bit activations, `int-quantized` for int8
weights with int8 activations. bitsandbytes quantizes and saves its own formats.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from turnmill.compression.quantize.affine import Grid, PackedWeight
from turnmill.compression.step import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_quantized(state: State, folder: Path) -> None:
    """Save the state's model in its quantized format: safetensors and config.json.

    Raises:
        ValueError: the state has no integers for its format.
    """
    if state.format.startswith("bnb"):
        _save_bitsandbytes(state, folder)
    else:
        save_compressed_tensors(
            state.model, state.packed, folder, int8_activations=state.format == "w8a8"
        )


def save_compressed_tensors(
    model: "PreTrainedModel",
    packed: Mapping[str, PackedWeight],
    folder: Path,
    *,
    int8_activations: bool = False,
) -> None:
    """Save a model whose linear layers of these names are integers; the rest as the model is."""
    if not packed:
        raise ValueError("The model has no quantized layers to save.")
    tensors = dict(model.state_dict())
    dtype = model.dtype
    for name, weight in packed.items():
        del tensors[f"{name}.weight"]
        parts = _plain(weight, dtype) if int8_activations else _packed(weight, dtype)
        tensors.update({f"{name}.{key}": value for key, value in parts.items()})
    model.config.quantization_config = quantization_config(
        model, packed, int8_activations=int8_activations
    )
    try:
        model.save_pretrained(folder, state_dict=tensors)
    finally:
        del model.config.quantization_config


def quantization_config(
    model: nn.Module, packed: Mapping[str, PackedWeight], *, int8_activations: bool
) -> dict[str, object]:
    """Return what config.json says of the integers, as compressed-tensors reads it."""
    grids = {weight.grid for weight in packed.values()}
    if len(grids) != 1:
        raise ValueError("All quantized layers of a model must share one grid.")
    if not next(iter(grids)).symmetric:
        raise ValueError(
            "transformers does not load packed zero points (compressed-tensors 0.20 unpacks their "
            "shape only): quantize on a symmetric grid."
        )
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token"}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if int8_activations else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [name for name in linears if name not in packed],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _weights(grids.pop()),
                "input_activations": {**activations, "dynamic": True} if int8_activations else None,
                "output_activations": None,
            }
        },
    }


def _weights(grid: Grid) -> dict[str, object]:
    group = grid.group if isinstance(grid.group, int) else None
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if group is None else "group",
        "group_size": group,
        "dynamic": False,
    }


def _scales(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """One row of scales a row of weights; a single scale is repeated."""
    return packed.scales.expand(len(packed.integers), -1).to(dtype).contiguous()


def _plain(packed: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"weight": packed.integers.contiguous(), "weight_scale": _scales(packed, dtype)}


def _packed(packed: PackedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {
        "weight_packed": pack_to_int32(packed.integers, packed.grid.bits),
        "weight_scale": _scales(packed, dtype),
        "weight_shape": torch.tensor(packed.integers.shape),
    }


def _save_bitsandbytes(state: State, folder: Path) -> None:
    """Let bitsandbytes quantize the model, and save it in bitsandbytes' format."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if state.format == "bnb-int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    with tempfile.TemporaryDirectory(dir=folder.parent) as dense:
        state.model.save_pretrained(dense)
        model = AutoModelForCausalLM.from_pretrained(
            dense, quantization_config=config, dtype=state.model.dtype, device_map={"": "cpu"}
        )
    model.save_pretrained(folder)

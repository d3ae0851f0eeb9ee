"""Load a folder of compressed-tensors with its integers packed, at the speed of torch's products.

transformers itself decompresses such folders when it loads them, and then multiplies dense weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turnmill.compression.quantize.affine import Grid, PackedWeight
from turnmill.compression.quantize.layers import pack_linears


def load_packed(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Load a causal language model that `save_compressed_tensors` wrote, in evaluation mode.

    Layers for which torch has no product here are dequantized.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    packed = _take_integers(tensors, said["config_groups"]["group_0"]["weights"])
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    tensors |= {f"{name}.weight": weight.dense() for name, weight in packed.items()}
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if set(missing) - tied:
        raise ValueError(f"{folder} lacks the weights {', '.join(sorted(set(missing) - tied))}.")
    model.tie_weights()
    pack_linears(model, packed, int8_activations=said["format"] == "int-quantized")
    return model.eval()


def _take_integers(tensors: dict[str, Tensor], weights: dict[str, Any]) -> dict[str, PackedWeight]:
    """Take the quantized layers out of a checkpoint's tensors, by the layers' names."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    grid = Grid(weights["num_bits"], weights["symmetric"], weights["group_size"] or "channel")
    packed = {}
    for name in [key.removesuffix(".weight_scale") for key in tensors if "weight_scale" in key]:
        scales = tensors.pop(f"{name}.weight_scale").float()
        if f"{name}.weight_packed" in tensors:
            shape = torch.Size(tensors.pop(f"{name}.weight_shape").tolist())
            integers = unpack_from_int32(tensors.pop(f"{name}.weight_packed"), grid.bits, shape)
        else:
            integers = tensors.pop(f"{name}.weight")
        packed[name] = PackedWeight(integers, scales, None, grid)
    return packed

"""Load folders of compressed-tensors with packed linear layers, to measure what the bits gain.

transformers dequantizes such a folder on the CPU: right for its perplexity, not for its speed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from turnmill.compression.calibration import skeleton_of
from turnmill.compression.quantize.affine import Grid, PackedWeight
from turnmill.compression.quantize.layers import pack_linears
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_packed(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Load the model; its quantized layers multiply packed integers where torch has the product.

    Layers for whose grid torch has none are dequantized.

    Raises:
        InvalidInput: tensors are missing: what they hold would be random numbers.
    """
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    scheme = config.quantization_config["config_groups"]["group_0"]
    del config.quantization_config
    tensors = _tensors(folder)
    packed = packed_weights(tensors, scheme["weights"])
    left = {name: weight for name, weight in tensors.items() if not _is_packed(name, packed)}
    for name, weight in packed.items():  # Filled below, or replaced.
        left[f"{name}.weight"] = torch.empty(weight.integers.shape, dtype=dtype)
    # transformers reads the names that it wrote, which are not always those of the modules.
    model, found = type(skeleton_of(config)).from_pretrained(
        None, config=config, state_dict=left, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise InvalidInput(
            f"{folder} lacks {len(missing)} of its model's tensors, '{missing[0]}' first. Compress "
            "the model again.",
            param="model",
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    names = pack_linears(model, packed, int8_activations=bool(scheme["input_activations"]))
    for name in names:
        model.get_submodule(name).weight.data.copy_(packed[name].dense())
    return model.eval()


def packed_weights(
    tensors: dict[str, Tensor], scheme: Mapping[str, Any]
) -> dict[str, PackedWeight]:
    """Return the integers of each quantized layer, by its name."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    grid = Grid(scheme["num_bits"], scheme["symmetric"], scheme["group_size"] or "channel")
    found = {}
    for key, scales in tensors.items():
        name, _, part = key.rpartition(".")
        if part != "weight_scale":
            continue
        if f"{name}.weight_packed" in tensors:
            shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
            integers = unpack_from_int32(tensors[f"{name}.weight_packed"], grid.bits, shape)
        else:
            integers = tensors[f"{name}.weight"]
        found[name] = PackedWeight(integers.to(torch.int8), scales.float(), None, grid)
    return found


def _is_packed(key: str, packed: dict[str, PackedWeight]) -> bool:
    name, _, part = key.rpartition(".")
    return name in packed and part != "bias"


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return {key: value for name in sorted(names) for key, value in load_file(folder / name).items()}

"""Load what is to be measured: checkpoints, quantized folders and GGUF files, on the CPU."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What all models of one comparison compute in.
Dtype = Literal["bfloat16", "float32"]

#: Files that hold weights. Tokenizers, reports and plots do not count as the model's size.
_WEIGHTS = {".safetensors", ".gguf", ".bin", ".tflite", ".pt"}


def load_candidate(
    path: Path, dtype: Dtype = "bfloat16"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a folder of transformers or a GGUF file; GGUF weights are dequantized.

    Raises:
        InvalidInput: the path holds no model that transformers reads.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options = {"dtype": getattr(torch, dtype), "device_map": {"": "cpu"}}
    if path.suffix == ".gguf":
        from transformers import GgufConfig

        named = {"gguf_file": path.name}
        folder = path.parent
        options |= {**named, "quantization_config": GgufConfig(dequantize=True)}
    else:
        named, folder = {}, path
        if quantization_of(path) == "compressed-tensors":
            from transformers import CompressedTensorsConfig

            options["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **named)


def quantization_of(path: Path) -> str | None:
    """Return the quantization method in the folder's config.json, None where there is none.

    Raises:
        InvalidInput: the path holds no model.
    """
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} holds no model: expected a folder with a config.json, or a .gguf file."
        ) from error
    method: str | None = (config.get("quantization_config") or {}).get("quant_method")
    return method


def bytes_of(path: Path) -> int:
    """Return the size on disk of the model's weights, in bytes."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files if one.suffix in _WEIGHTS)

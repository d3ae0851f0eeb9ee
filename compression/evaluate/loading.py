"""Load what is to be measured: checkpoints, quantized folders and GGUF files, on the CPU."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What all models of one comparison compute in.
Dtype = Literal["bfloat16", "float32"]

#: What a checkpoint's weights are called, in the order in which transformers looks for them. Each
#: may be an index of several files instead.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load_candidate(path: Path, dtype: Dtype = "bfloat16") -> "PreTrainedModel":
    """Load a folder of transformers or a GGUF file, to measure its quality.

    Weights are dequantized, which changes no result. Models of int8 activations round them in
    packed layers: transformers would forget about the activations.

    Raises:
        InvalidInput: the path holds no model that transformers reads.
    """
    return load_fast(path, dtype) if has_int8_activations(path) else load_dense(path, dtype)


def load_fast(path: Path, dtype: Dtype = "bfloat16") -> "PreTrainedModel":
    """Load a model to measure its speed: with packed weights, where torch multiplies them."""
    import torch

    if quantization_of(path) != "compressed-tensors":
        return load_dense(path, dtype)
    from turnmill.compression.quantize.reopen import load_packed

    return load_packed(path, getattr(torch, dtype))


def load_dense(path: Path, dtype: Dtype = "bfloat16") -> "PreTrainedModel":
    """Load a model with linear layers of floating-point weights, where its format allows it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantization = quantization_of(path)
    options = {"dtype": getattr(torch, dtype), "device_map": {"": "cpu"}}
    if quantization == "gguf":
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    elif quantization == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        options["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    folder, named = _place(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        model = AutoModelForCausalLM.from_pretrained(folder, **named, **options)
    return model.eval()


def has_int8_activations(path: Path) -> bool:
    """Tell whether the model rounds activations too (W8A8)."""
    if quantization_of(path) != "compressed-tensors":
        return False
    groups = _config(path)["quantization_config"]["config_groups"]
    return any(group.get("input_activations") for group in groups.values())


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a folder or a GGUF file."""
    from transformers import AutoTokenizer

    folder, named = _place(path)
    return AutoTokenizer.from_pretrained(folder, **named)


def _place(path: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder, and what transformers must be told of a GGUF file in it."""
    return (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})


def quantization_of(path: Path) -> str | None:
    """Return the quantization method in the folder's config.json, None where there is none.

    Raises:
        InvalidInput: the path holds no model.
    """
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    method: str | None = (_config(path).get("quantization_config") or {}).get("quant_method")
    return method


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, object] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} holds no model: expected a folder with a config.json, or a .gguf file."
        ) from error
    return config


def bytes_of(path: Path) -> int:
    """Return the size on disk of the model's weights, in bytes.

    In a folder, those that transformers loads: other files beside them hold the same weights again.
    """
    files = [path] if path.is_file() else weight_files(path)
    return sum(each.stat().st_size for each in files)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads a checkpoint's weights from; empty if none is there.

    Raises:
        InvalidInput: their index is damaged.
    """
    for name in _WEIGHTS:
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            try:
                parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                return [folder / each for each in sorted(set(parts))]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InvalidInput(
                    f"{index} is no index of a checkpoint: download it again."
                ) from error
    return []

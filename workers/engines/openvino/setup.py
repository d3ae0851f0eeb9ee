"""What the settings mean to OpenVINO: which file it opens, where, with which numbers."""

import json
import math
from pathlib import Path

from turnmill.compression.formats.gguf import read_header
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.blocks import BlockRecord
from turnmill.workers.engines.models import ModelForm, prepare_model

#: What the weights are rewritten to.
FORMS: dict[str, ModelForm] = {"none": "gguf", "int8": "gguf-q8_0", "int4": "gguf-q4_0"}

PRECISIONS = {"int8": "u8", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}

DEFAULT_CONTEXT_WINDOW = 4096

#: Bytes of one number in the KV cache, at most (it is quantized to fewer by default).
KV_BYTES = {"auto": 2, "int8": 2, "bfloat16": 2, "float16": 2, "float32": 4}

#: Tokens in a block of the KV cache on a CPU.
BLOCK_SIZE = 32


def openvino_path(settings: EngineSettings) -> Path:
    """A GGUF file or an exported model's folder.

    Raises:
        SettingsError: OpenVINO cannot open the model, or not with weights in these bits.
    """
    if settings.quantization not in FORMS:
        raise SettingsError(
            "OpenVINO has no nf4 weights. Choose int8 or int4, or the transformers engine."
        )
    path = Path(prepare_model(settings, FORMS[settings.quantization]))
    if path.suffix == ".gguf":
        return path
    if (path / "openvino_model.xml").exists():
        if settings.quantization != "none":
            raise SettingsError(
                f"{path} is an exported OpenVINO model, whose weights are what it was exported "
                "with. Leave TURNMILL_ENGINE__QUANTIZATION out."
            )
        return path
    raise SettingsError(
        f"OpenVINO opens GGUF files and exported OpenVINO models; '{settings.model}' is neither. "
        "Choose TURNMILL_ENGINE__NAME=transformers for it."
    )


def device(settings: EngineSettings) -> str:
    if settings.device.startswith("cuda"):
        raise SettingsError(
            "OpenVINO does not run on CUDA. Choose TURNMILL_ENGINE__NAME=transformers."
        )
    return "CPU" if settings.device == "auto" else settings.device.upper()


def properties(settings: EngineSettings) -> dict[str, str]:
    precisions = {
        "INFERENCE_PRECISION_HINT": settings.dtype,
        "KV_CACHE_PRECISION": settings.kv_cache_dtype,
    }
    chosen = {key: PRECISIONS[value] for key, value in precisions.items() if value != "auto"}
    if settings.dtype == "float32":
        # Else 8-bit activations meet quantized weights on processors that multiply such.
        chosen["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    return chosen


def block_record(path: Path, settings: EngineSettings) -> BlockRecord:
    """As many blocks as the cache holds at least; none where nothing is kept."""
    if not settings.prefix_cache:
        return BlockRecord(BLOCK_SIZE, 0)
    values = read_header(path).kv_values_per_token() if path.suffix == ".gguf" else None
    cache = math.ceil(settings.kv_cache_gib) << 30
    tokens = cache // (values * KV_BYTES[settings.dtype]) if values else DEFAULT_CONTEXT_WINDOW
    return BlockRecord(BLOCK_SIZE, tokens // BLOCK_SIZE)


def context_window(path: Path, settings: EngineSettings) -> int:
    """The smallest of what the model was made for, the settings ask, and the KV cache holds."""
    limits = [settings.context_window]
    if path.suffix == ".gguf":
        header = read_header(path)
        limits.append(header.context_length)
        if values := header.kv_values_per_token():
            cache = math.ceil(settings.kv_cache_gib) << 30
            limits.append(cache // (values * KV_BYTES[settings.dtype]))
    elif (path / "config.json").exists():
        limits.append(json.loads((path / "config.json").read_text()).get("max_position_embeddings"))
    return min((limit for limit in limits if limit), default=DEFAULT_CONTEXT_WINDOW)


def embedding_rows(path: Path, vocabulary_size: int) -> int:
    """Rows of the table of embeddings, which may be padded beyond the vocabulary."""
    config = path / "config.json"
    if path.is_dir() and config.exists():
        return int(json.loads(config.read_text()).get("vocab_size") or vocabulary_size)
    return vocabulary_size

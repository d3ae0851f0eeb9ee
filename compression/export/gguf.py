"""Export to GGUF, which the default engine serves: F16, Q8_0 or Q4_0.

Weights that a step quantized are written as the very integers and scales it chose, where the
format can hold them; nothing is rounded twice. Names and layout of tensors:
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from turnmill.compression.formats.gguf import (
    BLOCK,
    Q4_0,
    Q8_0,
    Entry,
    Tensor,
    Weights,
    pack_blocks,
    write,
)
from turnmill.compression.step import Progress, State
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from turnmill.compression.quantize.affine import PackedWeight

#: Architectures of transformers that GGUF knows by the same name.
ARCHITECTURES = ("llama", "qwen2")

#: Called like the forms that engines look for.
FILES: dict[Weights, str] = {
    "f16": "model-f16.gguf",
    "q8_0": "model-q8_0.gguf",
    "q4_0": "model-q4_0.gguf",
}

#: What a step's format is exact in.
EXACT: dict[str, Weights] = {"int8": "q8_0", "int4": "q4_0", "w8a8": "q8_0"}

_F32, _F16 = 0, 1


def export(state: State, folder: Path, weights: str, progress: Progress) -> Mapping[str, object]:
    """Write `model-….gguf` into the folder and return how many matrices kept their integers.

    Raises:
        InvalidInput: GGUF has no such architecture or tokenizer.
    """
    kind: Weights = EXACT.get(state.format, "f16") if weights == "auto" else _weights(weights)
    entries = _metadata(state, kind)
    parameters = state.model.state_dict()
    progress.start(len(parameters), f"writing {FILES[kind]}")
    exact: list[str] = []
    tensors = _tensors(state, parameters, kind, exact, progress)
    write(folder / FILES[kind], entries, tensors)
    return {"file": FILES[kind], "weights": kind, "exact_matrices": len(exact)}


def check(config: "PretrainedConfig") -> None:
    """Raise `InvalidInput` for a model that `export` cannot write."""
    if config.model_type not in ARCHITECTURES:
        raise InvalidInput(
            f"Models of the architecture '{config.model_type}' cannot be exported to GGUF yet: "
            f"{', '.join(ARCHITECTURES)} can. Leave out the step 'export'."
        )
    kind = config.rope_parameters.get("rope_type", "default")
    if kind != "default":
        raise InvalidInput(
            f"GGUF export knows no RoPE of the type '{kind}' yet. Leave out the step 'export'."
        )


def _weights(name: str) -> Weights:
    for each in FILES:
        if name == each:
            return each
    raise InvalidInput(f"GGUF has no weights '{name}': {', '.join(FILES)}.", param="weights")


def _tensors(
    state: State,
    parameters: "Mapping[str, torch.Tensor]",
    kind: Weights,
    exact: list[str],
    progress: Progress,
) -> Iterator[Tensor]:
    import gguf
    import torch

    config = state.model.config
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, value in parameters.items():
        progress.advance()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise InvalidInput(f"GGUF's {config.model_type} has no tensor '{name}'.")
        packed = state.packed.get(name.removesuffix(".weight"))
        if packed is not None and (blocks := _exact_blocks(packed, kind)) is not None:
            exact.append(name)
            integers, scales, block_kind = blocks
            rows = _row_order(name, len(integers), config)
            yield Tensor(
                new_name, pack_blocks(integers[rows], scales[rows], block_kind), block_kind
            )
        else:
            saved = value.to(getattr(torch, state.dtype))
            yield _rounded(new_name, _in_order(name, saved, config), kind)


def _exact_blocks(
    packed: "PackedWeight", kind: Weights
) -> "tuple[NDArray[np.int8], NDArray[np.float32], int] | None":
    """Integers, a scale for each block and its type; None if the format cannot hold them."""
    import numpy

    integers, scales = packed.integers.numpy(), packed.scales.float().numpy()
    columns = integers.shape[1]
    group = columns // scales.shape[1]
    if packed.zeros is not None or columns % BLOCK or group % BLOCK or kind == "f16":
        return None
    is_4_bit = integers.min() >= -8 and integers.max() <= 7
    block_kind = Q4_0 if is_4_bit and kind == "q4_0" else Q8_0
    blocks = scales.repeat(group // BLOCK, axis=1)
    return integers, numpy.broadcast_to(blocks, (len(integers), blocks.shape[1])), block_kind


def _rounded(name: str, value: "NDArray[np.float32]", kind: Weights) -> Tensor:
    """Vectors stay in 32 bits, embeddings and what a quantized recipe left alone in 16."""
    import gguf
    import numpy

    if value.ndim == 1:
        return Tensor(name, value, _F32)
    is_embedding = name in ("token_embd.weight", "output.weight")
    if kind == "f16" or is_embedding or value.shape[1] % BLOCK:
        return Tensor(name, value.astype(numpy.float16), _F16)
    block_kind = gguf.GGMLQuantizationType(Q4_0 if kind == "q4_0" else Q8_0)
    return Tensor(name, gguf.quantize(value, block_kind), int(block_kind))


def _in_order(
    name: str, value: "torch.Tensor", config: "PretrainedConfig"
) -> "NDArray[np.float32]":
    """The parameter as float32 numpy array, its rows as GGUF has them."""
    array: NDArray[np.float32] = value.detach().float().numpy()
    return array[_row_order(name, len(array), config)]


def _row_order(name: str, rows: int, config: "PretrainedConfig") -> "NDArray[np.intp]":
    """Llama's queries and keys: GGUF interleaves the two halves of a head that rotate together."""
    import numpy

    order = numpy.arange(rows)
    is_query, is_key = ".q_proj." in name, ".k_proj." in name
    if config.model_type != "llama" or not (is_query or is_key):
        return order
    heads = config.num_attention_heads if is_query else config.num_key_value_heads
    return order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _metadata(state: State, kind: Weights) -> dict[str, Entry]:
    import gguf

    config, types = state.model.config, gguf.GGUFValueType
    check(config)
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    rope = config.rope_parameters
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "rope.dimension_count": head_size,
        "vocab_size": config.vocab_size,
    }
    reals = {
        "rope.freq_base": rope["rope_theta"],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    name = config.model_type
    file_type = int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    return {
        "general.architecture": Entry(name, types.STRING),
        "general.file_type": Entry(file_type, types.UINT32),
        **{f"{name}.{key}": Entry(int(value), types.UINT32) for key, value in numbers.items()},
        **{f"{name}.{key}": Entry(float(value), types.FLOAT32) for key, value in reals.items()},
        **_tokenizer_metadata(state.tokenizer, config.vocab_size),
    }


def _tokenizer_metadata(
    tokenizer: "PreTrainedTokenizerBase", vocabulary_size: int
) -> dict[str, Entry]:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have it."""
    import json

    import gguf

    types, kinds = gguf.GGUFValueType, gguf.TokenType
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(content["decoder"]):
        raise InvalidInput("Only models with a byte-level BPE tokenizer can be exported to GGUF.")
    tokens = [f"[PAD{number}]" for number in range(vocabulary_size)]
    token_types = [int(kinds.UNUSED)] * vocabulary_size
    for token, number in content["model"]["vocab"].items():
        tokens[number], token_types[number] = token, int(kinds.NORMAL)
    for added in content["added_tokens"]:
        kind = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
        tokens[added["id"]], token_types[added["id"]] = added["content"], int(kind)
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    entries = {
        "model": Entry("gpt2", types.STRING),
        "pre": Entry(_pre_tokenizer(json.dumps(content["pre_tokenizer"])), types.STRING),
        "tokens": Entry(tokens, types.ARRAY, types.STRING),
        "token_type": Entry(token_types, types.ARRAY, types.INT32),
        "merges": Entry(merges, types.ARRAY, types.STRING),
        "add_bos_token": Entry(False, types.BOOL),
        "add_space_prefix": Entry(False, types.BOOL),
    }
    for key, name in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items():
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            entries[f"{key}_token_id"] = Entry(number, types.UINT32)
    metadata = {f"tokenizer.ggml.{key}": entry for key, entry in entries.items()}
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = Entry(tokenizer.chat_template, types.STRING)
    return metadata


def _pre_tokenizer(content: str) -> str:
    """llama.cpp's name of how text is split before pairs are merged."""
    if '"Digits"' in content:
        return "smollm"
    if r"\\p{N}{1,3}" in content:
        return "llama-bpe"
    return "qwen2" if '"Split"' in content else "gpt-2"

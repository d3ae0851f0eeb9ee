"""GGUF files: reading their header, writing them, and rewriting their weights in 16, 8 or 4 bits.

The header is read without the `gguf` library, which takes seconds to list a vocabulary.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from turnmill.schemas.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor
    from numpy.typing import NDArray

MAGIC = b"GGUF"

#: Value type → struct format.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9

#: Tensor types that every engine reads exactly: F32, F16.
EXACT_TENSOR_TYPES = frozenset({0, 1})

#: Blocks of 32 weights in 8 or 4 bits with a 16-bit scale. Q4_1 has an offset beside it, which
#: OpenVINO's reader looks for a byte too early, and for the weights two (`extract_q4_1_data` in its
#: gguf_quants.cpp): it answers differently.
Q4_0, Q8_0 = 2, 8

#: Tensor type → weights in a block, and its bytes. Of a type that is missing here, only the
#: beginnings of its tensors are known. https://github.com/ggml-org/ggml/blob/master/src/ggml.c
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    30: (1, 2),
}

_ALIGNMENT = 32

#: What matrices are rewritten to.
Weights = Literal["f16", "q8_0", "q4_0"]

#: Weights of one row that share a scale.
BLOCK = 32

#: The first and the last matrix: in 4 bits they would cost most, so they are kept in 8.
VOCABULARY_TENSORS = ("token_embd.weight", "output.weight")


@dataclass(frozen=True, slots=True)
class Header:
    #: Scalars and strings; the arrays, such as the vocabulary, are left out.
    metadata: dict[str, object]
    #: Numbers of the tensor types that occur.
    tensor_types: frozenset[int]
    #: Bytes that a complete file has, at least.
    size: int = 0

    @property
    def is_exact(self) -> bool:
        return self.tensor_types <= EXACT_TENSOR_TYPES

    @property
    def is_q8_0(self) -> bool:
        return Q8_0 in self.tensor_types and self.tensor_types <= {*EXACT_TENSOR_TYPES, Q8_0}

    @property
    def is_q4_0(self) -> bool:
        return Q4_0 in self.tensor_types and self.tensor_types <= {*EXACT_TENSOR_TYPES, Q8_0, Q4_0}

    def has(self, weights: Weights) -> bool:
        """Whether a rewrite to these would change nothing."""
        return {"f16": self.is_exact, "q8_0": self.is_q8_0, "q4_0": self.is_q4_0}[weights]

    @property
    def context_length(self) -> int | None:
        return self._of_architecture("context_length")

    def kv_values_per_token(self) -> int | None:
        """Numbers that the KV cache keeps for one token."""
        layers, heads = self._of_architecture("block_count"), self._heads()
        head_size = self._of_architecture("attention.key_length")
        if head_size is None and (width := self._of_architecture("embedding_length")):
            head_size = width // (self._of_architecture("attention.head_count") or 1)
        return 2 * layers * heads * head_size if layers and heads and head_size else None

    def _heads(self) -> int | None:
        return self._of_architecture("attention.head_count_kv") or self._of_architecture(
            "attention.head_count"
        )

    def _of_architecture(self, key: str) -> int | None:
        value = self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}")
        return value if isinstance(value, int) else None


def read_header(path: Path) -> Header:
    """Raises `SettingsError` where the file is none, or shorter than its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _Reader(file).header()
    except (OSError, ValueError, struct.error) as error:
        raise SettingsError(f"{path} is not a readable GGUF file: {error}") from error
    if size < header.size:
        raise SettingsError(
            f"{path} is truncated: it has {size:,} of {header.size:,} bytes. Download it again, or "
            "resume its download."
        )
    return header


def rewrite(source: Path, target: Path, weights: Weights) -> None:
    """Copy the model with all quantized tensors dequantized to 16-bit floats, or all matrices
    quantized to Q8_0 or Q4_0; what is in the wanted form already is copied bit for bit.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    file_type = gguf.LlamaFileType[f"MOSTLY_{weights.upper()}"]
    entries = {}
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF."):
            value = int(file_type) if key == "general.file_type" else entry.contents()
            entries[key] = Entry(value, entry.types[0], entry.types[-1])
    write(target, entries, (_rewritten(tensor, weights) for tensor in reader.tensors))


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of the metadata with its `GGUFValueType`; of an array also that of its items."""

    value: object
    type: object
    item_type: object = None


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    #: A numpy array: numbers in the shape of the tensor, or the bytes of quantized rows.
    data: "NDArray[np.generic]"
    #: Its number as a `GGMLQuantizationType`.
    type: int


def write(target: Path, entries: Mapping[str, Entry], tensors: Iterable[Tensor]) -> None:
    """Write a GGUF file; `entries` has `general.architecture`."""
    import gguf

    writer = gguf.GGUFWriter(target, entries["general.architecture"].value)
    for key, entry in entries.items():
        if key != "general.architecture":
            is_array = entry.type == gguf.GGUFValueType.ARRAY
            item_type = entry.item_type if is_array else None
            writer.add_key_value(key, entry.value, entry.type, item_type)
    try:
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType(tensor.type)
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def pack_blocks(
    integers: "NDArray[np.int8]", scales: "NDArray[np.float32]", kind: int
) -> "NDArray[np.generic]":
    """Lay integers out as rows of Q8_0 or Q4_0 blocks, without rounding them anew.

    Args:
        integers: int8 [rows, columns]; for Q4_0 from -8 to 7.
        scales: [rows, columns / 32], rounded to 16 bits as the format has it.

    Returns:
        uint8 [rows, bytes of a row]. Per block: the scale (float16), then 32 bytes, or 16 bytes
        whose low halves are the first 16 weights plus 8 and whose high halves the last 16.
    """
    import numpy

    rows = len(integers)
    content: NDArray[np.generic]
    blocks = integers.reshape(rows, -1, BLOCK)
    scale_bytes = scales.astype(numpy.float16)[..., None].view(numpy.uint8)
    if kind == Q8_0:
        content = blocks.astype(numpy.int8).view(numpy.uint8)
    else:
        halves = (blocks + 8).astype(numpy.uint8)
        content = halves[..., : BLOCK // 2] | halves[..., BLOCK // 2 :] << 4
    return numpy.concatenate([scale_bytes, content], axis=-1).reshape(rows, -1)


def _rewritten(tensor: "ReaderTensor", weights: Weights) -> Tensor:
    import gguf

    kind = gguf.GGMLQuantizationType(_new_type(tensor, weights))
    data = tensor.data
    if kind != tensor.tensor_type:
        data = gguf.quantize(gguf.dequantize(data, tensor.tensor_type), kind)
    return Tensor(tensor.name, data, int(kind))


def _new_type(tensor: "ReaderTensor", weights: Weights) -> int:
    """Vectors, such as norms, are few and stay exact."""
    kind = int(tensor.tensor_type)
    is_matrix = len(tensor.shape) > 1 and int(tensor.shape[0]) % 32 == 0
    if is_matrix and weights == "q4_0":
        return Q8_0 if tensor.name in VOCABULARY_TENSORS and kind != Q4_0 else Q4_0
    if is_matrix and weights == "q8_0":
        return Q8_0
    return kind if kind in EXACT_TENSOR_TYPES else 1


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def header(self) -> Header:
        if self._file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported")
        tensor_count, entry_count = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(entry_count):
            key = self._string()
            value = self._value(self._number("I"))
            if value is not None:
                metadata[key] = value
        tensors = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        begin = -(-self._file.tell() // alignment) * alignment
        size = begin + max((end for _, end in tensors), default=0) if tensors else 0
        return Header(metadata, frozenset(kind for kind, _ in tensors), size)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._skip_array()
        return self._number(SCALARS[kind])

    def _skip_array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind in (STRING, ARRAY):
            for _ in range(count):
                self._skip(self._number("Q")) if kind == STRING else self._skip_array()
        else:
            self._skip(count * struct.calcsize(SCALARS[kind]))

    def _tensor(self) -> tuple[int, int]:
        """Return a tensor's type, and where its data ends, from the beginning of all data."""
        self._string()
        count = prod(self._number("Q") for _ in range(self._number("I")))
        kind, offset = self._number("I"), self._number("Q")
        weights, size = _BLOCKS.get(kind, (1, 0))
        return kind, offset + count // weights * size

    def _skip(self, size: int) -> None:
        self._file.seek(size, 1)

    def _number(self, letter: str) -> Any:
        size = struct.calcsize(letter)
        return struct.unpack(f"<{letter}", self._file.read(size))[0]

    def _string(self) -> str:
        return self._file.read(self._number("Q")).decode(errors="replace")

"""A transformers checkpoint's folder, read without torch and without transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from safetensors.tensorflow import load_file


class Checkpoint:
    """Raises `OSError` or `ValueError` for a folder that cannot be read, and `KeyError` for a
    tensor that it lacks.
    """

    def __init__(self, folder: Path) -> None:
        self.config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
        generation = folder / "generation_config.json"
        self._generation = json.loads(generation.read_text()) if generation.exists() else {}
        self._tensors: dict[str, tf.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._tensors |= load_file(file)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a reply."""
        found = self._generation.get("eos_token_id")
        ends = self.config.get("eos_token_id") if found is None else found
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def is_a(self, architecture: str) -> bool:
        return architecture in (self.config.get("architectures") or ())

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def matrix(self, *names: str) -> tf.Variable:
        """[in, out], in 32 bits; what is multiplied by the same input in one."""
        parts = [tf.transpose(self._tensor(name)) for name in names]
        return tf.Variable(tf.concat(parts, axis=1), trainable=False)

    def vector(self, name: str) -> tf.Variable:
        """As it is, in 32 bits: a norm's weights, or a table of embeddings."""
        return tf.Variable(self._tensor(name), trainable=False)

    def _tensor(self, name: str) -> tf.Tensor:
        return tf.cast(self._tensors[f"{name}.weight"], tf.float32)

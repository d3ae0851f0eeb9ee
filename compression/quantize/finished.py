"""Quantized decoder layers: what they hold, and on disk those that a step has finished."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from turnmill.compression.artifact import digest_of_json
from turnmill.compression.calibration import decoder_layers
from turnmill.compression.checkpoint import packed_from, tensors_of
from turnmill.compression.quantize.affine import PackedWeight


@dataclass
class Quantized:
    """What became of a model: integers and errors by the name of the linear layer.

    An error is the mean of ‖(W − Ŵ)·x‖² over the calibration tokens, relative to that of ‖W·x‖².
    """

    packed: dict[str, PackedWeight] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    #: Linear layers that GPTQ did not improve, and that are rounded to nearest.
    fallbacks: list[str] = field(default_factory=list)

    def add(self, other: "Quantized") -> None:
        self.packed |= other.packed
        self.errors |= other.errors
        self.fallbacks += other.fallbacks


class FinishedLayers:
    """A folder with one file for each finished decoder layer, so that a killed step resumes.

    identity: what the layers were made for, as a JSON value; another one's files are not used.
    """

    def __init__(self, folder: Path, identity: object) -> None:
        self._folder = folder / digest_of_json(identity)[:16]
        self._folder.mkdir(parents=True, exist_ok=True)

    def count(self) -> int:
        """Return how many layers, from the first one on, are on disk."""
        count = 0
        while self._path(count).exists():
            count += 1
        return count

    def keep(self, index: int, layer: nn.Module, rounded: Quantized) -> None:
        """Write a decoder layer aside and rename it: its integers, and what was not rounded."""
        tensors, grids = tensors_of(rounded.packed)
        inner = [name.partition(f".{index}.")[2] for name in rounded.packed]
        others = layer.state_dict()
        for name in inner:
            del others[f"{name}.weight"]
        content = {
            "tensors": tensors,
            "grids": grids,
            "others": dict(others),
            "errors": rounded.errors,
            "fallbacks": rounded.fallbacks,
        }
        aside = self._path(index).with_suffix(".partial")
        torch.save(content, aside)
        aside.replace(self._path(index))

    def restore(self, model: nn.Module) -> Iterator[Quantized]:
        """Put the layers on disk into the model, one after another, and yield what they hold."""
        layers = decoder_layers(model)[1]
        for index in range(self.count()):
            content = torch.load(self._path(index), weights_only=True)
            layers[index].load_state_dict(content["others"], strict=False)
            packed = packed_from(content["tensors"], content["grids"])
            for name, weight in packed.items():
                model.get_submodule(name).weight.data.copy_(weight.dense())
            yield Quantized(packed, content["errors"], content["fallbacks"])

    def _path(self, index: int) -> Path:
        return self._folder / f"layer-{index}.pt"

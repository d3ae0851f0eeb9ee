"""Artifacts and pulled models, as `turnmill models list --json` shows them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from turnmill.compression.store import Promotion


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShownArtifact(_Shown):
    name: str
    is_promoted: bool
    #: The model that it was made of.
    base: str
    #: The format of its weights.
    weights: str
    size_bytes: int
    #: Limits of its recipe that it misses.
    misses: list[str]
    made_at: datetime


class ShownPulled(_Shown):
    name: str
    forms: list[Literal["gguf", "safetensors"]]
    licence: str


class ModelList(_Shown):
    artifacts: list[ShownArtifact]
    pulled: list[ShownPulled]


class ModelHistory(_Shown):
    """What `--history` shows."""

    history: list[Promotion]


class _Figure(_Shown):
    #: JSON has no infinity: it is null.
    value: float | None

    def __str__(self) -> str:
        return "∞" if self.value is None else f"{self.value:.3f}"


class _Domain(_Shown):
    ratio: _Figure
    divergence: _Figure
    top_1: _Figure


class _Row(_Shown):
    size: float
    dialogue: _Domain
    prose: _Domain


class MeasuredReport(_Shown):
    """What is shown of an artifact's report, whose last row is the artifact."""

    rows: list[_Row] = Field(min_length=1)

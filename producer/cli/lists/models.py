"""Artifacts and pulled models, as `turnmill models list --json` shows them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

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

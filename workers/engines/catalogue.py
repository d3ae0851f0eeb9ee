"""Well-known instruct models by short names: where the hub has them, and what they need.

Sizes are for planning. A download is checked against the sizes and checksums that the hub names
for the revision it gives.
"""

from dataclasses import dataclass
from typing import Literal

import psutil

#: A single GGUF file for OpenVINO, or a checkpoint of safetensors for transformers and vLLM.
PullForm = Literal["gguf", "safetensors"]

#: Beside the weights: the KV cache's default, and the process itself.
_BESIDE_WEIGHTS = 3 * 2**29
#: What buffers add to the weights while an engine loads and runs.
_PER_WEIGHT = 1.2
#: The share of the machine's memory that a model may take; PostgreSQL and the rest need some.
_SHARE = 0.75
#: On a CPU larger models answer slower than people read.
_MOST_BILLIONS_ON_CPU = 2.0


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    name: str
    billions: float
    #: The repository and the file with 8-bit weights (Q8_0), which OpenVINO opens as it is.
    gguf_repo: str
    gguf_file: str
    gguf_bytes: int
    #: The repository of the original 16-bit checkpoint.
    checkpoint_repo: str
    licence: str
    languages: str
    good_for: str
    #: Whether the hub gives the checkpoint only to accounts that accepted its conditions.
    is_gated: bool = False
    #: Whether replies begin with a chain of thought, unless a template value turns it off.
    thinks: bool = False

    @property
    def checkpoint_bytes(self) -> int:
        """Estimated: two bytes a parameter."""
        return int(self.billions * 2e9)

    def repo(self, form: PullForm) -> str:
        return self.gguf_repo if form == "gguf" else self.checkpoint_repo

    def size(self, form: PullForm) -> int:
        return self.gguf_bytes if form == "gguf" else self.checkpoint_bytes

    def memory_needed(self, form: PullForm = "gguf") -> int:
        return memory_needed(self.size(form))


_QWEN = "English, Chinese and 27 more"
_SEVEN = "English, German, French, Italian, Portuguese, Hindi, Spanish, Thai"

#: From the smallest to the largest.
CATALOGUE = (
    CatalogueModel(
        name="smollm2-360m-instruct",
        billions=0.36,
        gguf_repo="HuggingFaceTB/SmolLM2-360M-Instruct-GGUF",
        gguf_file="smollm2-360m-instruct-q8_0.gguf",
        gguf_bytes=386_404_992,
        checkpoint_repo="HuggingFaceTB/SmolLM2-360M-Instruct",
        licence="Apache-2.0",
        languages="English",
        good_for="trying things out; simple rewriting",
    ),
    CatalogueModel(
        name="qwen2.5-0.5b-instruct",
        billions=0.49,
        gguf_repo="Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        gguf_file="qwen2.5-0.5b-instruct-q8_0.gguf",
        gguf_bytes=675_710_816,
        checkpoint_repo="Qwen/Qwen2.5-0.5B-Instruct",
        licence="Apache-2.0",
        languages=_QWEN,
        good_for="the smallest that holds a conversation, in Chinese too",
    ),
    CatalogueModel(
        name="qwen3-0.6b",
        billions=0.6,
        gguf_repo="Qwen/Qwen3-0.6B-GGUF",
        gguf_file="Qwen3-0.6B-Q8_0.gguf",
        gguf_bytes=639_446_688,
        checkpoint_repo="Qwen/Qwen3-0.6B",
        licence="Apache-2.0",
        languages="100 and more",
        good_for="tools on a small machine",
        thinks=True,
    ),
    CatalogueModel(
        name="llama-3.2-1b-instruct",
        billions=1.24,
        gguf_repo="bartowski/Llama-3.2-1B-Instruct-GGUF",
        gguf_file="Llama-3.2-1B-Instruct-Q8_0.gguf",
        gguf_bytes=1_321_083_008,
        checkpoint_repo="meta-llama/Llama-3.2-1B-Instruct",
        licence="Llama 3.2 Community",
        languages=_SEVEN,
        good_for="summaries in European languages",
        is_gated=True,
    ),
    CatalogueModel(
        name="qwen2.5-1.5b-instruct",
        billions=1.54,
        gguf_repo="Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        gguf_file="qwen2.5-1.5b-instruct-q8_0.gguf",
        gguf_bytes=1_894_532_128,
        checkpoint_repo="Qwen/Qwen2.5-1.5B-Instruct",
        licence="Apache-2.0",
        languages=_QWEN,
        good_for="short customer-service replies on a CPU",
    ),
    CatalogueModel(
        name="qwen3-1.7b",
        billions=1.7,
        gguf_repo="Qwen/Qwen3-1.7B-GGUF",
        gguf_file="Qwen3-1.7B-Q8_0.gguf",
        gguf_bytes=1_834_426_016,
        checkpoint_repo="Qwen/Qwen3-1.7B",
        licence="Apache-2.0",
        languages="100 and more",
        good_for="tools and short reasoning on a CPU",
        thinks=True,
    ),
    CatalogueModel(
        name="llama-3.2-3b-instruct",
        billions=3.2,
        gguf_repo="bartowski/Llama-3.2-3B-Instruct-GGUF",
        gguf_file="Llama-3.2-3B-Instruct-Q8_0.gguf",
        gguf_bytes=3_421_899_296,
        checkpoint_repo="meta-llama/Llama-3.2-3B-Instruct",
        licence="Llama 3.2 Community",
        languages=_SEVEN,
        good_for="conversations in European languages",
        is_gated=True,
    ),
    CatalogueModel(
        name="qwen3-4b",
        billions=4.0,
        gguf_repo="Qwen/Qwen3-4B-GGUF",
        gguf_file="Qwen3-4B-Q8_0.gguf",
        gguf_bytes=4_280_404_704,
        checkpoint_repo="Qwen/Qwen3-4B",
        licence="Apache-2.0",
        languages="100 and more",
        good_for="tools and reasoning on a small GPU",
        thinks=True,
    ),
    CatalogueModel(
        name="mistral-7b-instruct-v0.3",
        billions=7.25,
        gguf_repo="bartowski/Mistral-7B-Instruct-v0.3-GGUF",
        gguf_file="Mistral-7B-Instruct-v0.3-Q8_0.gguf",
        gguf_bytes=7_702_565_024,
        checkpoint_repo="mistralai/Mistral-7B-Instruct-v0.3",
        licence="Apache-2.0",
        languages="English, French",
        good_for="English texts",
        is_gated=True,
    ),
    CatalogueModel(
        name="qwen2.5-7b-instruct",
        billions=7.6,
        gguf_repo="bartowski/Qwen2.5-7B-Instruct-GGUF",
        gguf_file="Qwen2.5-7B-Instruct-Q8_0.gguf",
        gguf_bytes=8_098_525_888,
        checkpoint_repo="Qwen/Qwen2.5-7B-Instruct",
        licence="Apache-2.0",
        languages=_QWEN,
        good_for="customer service in earnest, on a GPU",
    ),
    CatalogueModel(
        name="qwen3-8b",
        billions=8.2,
        gguf_repo="Qwen/Qwen3-8B-GGUF",
        gguf_file="Qwen3-8B-Q8_0.gguf",
        gguf_bytes=8_709_518_624,
        checkpoint_repo="Qwen/Qwen3-8B",
        licence="Apache-2.0",
        languages="100 and more",
        good_for="tools and reasoning on a GPU",
        thinks=True,
    ),
)


def find_model(name: str) -> CatalogueModel | None:
    """Return the catalogue's model of this name, in whatever case it is written."""
    return next((model for model in CATALOGUE if model.name == name.lower()), None)


def memory_needed(weights_bytes: int) -> int:
    """Estimate the memory that a worker needs for weights of this size, with its KV cache."""
    return int(weights_bytes * _PER_WEIGHT) + _BESIDE_WEIGHTS


def machine_memory() -> int:
    """Return the memory of this machine, bytes."""
    return int(psutil.virtual_memory().total)


def fits(needed: int, memory: int) -> bool:
    """Tell whether a machine with this memory serves a model, beside the rest of the stack."""
    return needed <= memory * _SHARE


def recommend(memory: int) -> CatalogueModel | None:
    """Return the largest model for a CPU that fits and answers without thinking aloud first."""
    suitable = [
        model
        for model in CATALOGUE
        if fits(model.memory_needed(), memory)
        and model.billions <= _MOST_BILLIONS_ON_CPU
        and not model.thinks
    ]
    return suitable[-1] if suitable else None

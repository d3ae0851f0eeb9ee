"""The rows of the compression benchmark: recipes, what each must reach, and what it aims at.

Ratios are to bfloat16 of the same checkpoint, on dialogue and on prose that no recipe sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from turnmill.compression.recipe import Recipe, parse_recipe

#: Held-out text is measured in 2 × 16 windows: a row takes half a minute.
WINDOWS = {"length": 256, "calibration": 64, "train": 2048, "heldout": 16, "prose": 16}

Step = Mapping[str, object]


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    name: str
    steps: Sequence[Step]
    #: Limits that the row must keep, named as in a recipe.
    least: Mapping[str, float] = field(default_factory=dict)
    #: Ratios that the row aims at: dialogue, prose.
    aim: tuple[float | None, float | None] = (None, None)
    #: What calibrates and trains: dialogue alone, or prose as well, of other documents than those
    #: that are measured.
    texts: Literal["dialogue", "mixed"] = "dialogue"

    def recipe(self) -> Recipe:
        """Return the row's recipe; its limits are what the row must reach."""
        return parse_recipe(
            {
                "name": self.name,
                "windows": WINDOWS,
                "step": [dict(step) for step in self.steps],
                "limits": dict(self.least),
            },
            source=f"the row '{self.name}'",
        )


def _quantize(method: str, bits: int = 4, **options: object) -> Step:
    return {"kind": "quantize", "method": method, "bits": bits, **options}


def _prune(method: str, **options: object) -> Step:
    return {"kind": "prune", "method": method, **options}


#: Training that recovers. Bounded by steps, a row is the same on a machine that is busy; two cores
#: that do nothing else take less than five minutes.
RECOVERY: Step = {"steps": 80, "windows": 320, "learning_rate": 2e-4}

_DISTILL: Step = {"kind": "distill", **RECOVERY}

INT8 = Entry("int8", [_quantize("rtn", 8)], {"perplexity": 1.005, "prose": 1.005, "size": 0.62})
INT4 = {"perplexity": 1.08, "prose": 1.25, "size": 0.45}

#: Of the default model.
ROWS: tuple[Entry, ...] = (
    INT8,
    Entry("int4-rtn", [_quantize("rtn", group=64)]),
    Entry("nf4", [{"kind": "quantize", "method": "bnb-nf4"}]),
    Entry("bnb-int8", [{"kind": "quantize", "method": "bnb-int8"}]),
    Entry(
        "w8a8",
        [_quantize("smoothquant", 8)],
        {"perplexity": 1.03, "prose": 1.03, "size": 0.62},
        (1.015, 1.015),
    ),
    Entry("int4-gptq", [_quantize("gptq", group=64)], INT4),
    Entry("int4-awq", [_quantize("awq", group=64)], INT4),
    Entry("int4-awq-gptq", [_quantize("awq-gptq", group=64)], INT4),
    Entry(
        "int4-recovered",
        [_quantize("gptq", group=64), {"kind": "qat", **RECOVERY, "learning_rate": 1e-5}],
        INT4,
        (1.03, 1.12),
        "mixed",
    ),
    Entry("magnitude-50", [_prune("magnitude")]),
    Entry("wanda-50", [_prune("wanda")]),
    Entry("sparsegpt-50", [_prune("sparsegpt")]),
    Entry(
        "sparsegpt-50-recovered",
        [_prune("sparsegpt"), _DISTILL],
        {"perplexity": 1.35, "prose": 1.6},
        (1.2, 1.4),
        "mixed",
    ),
    Entry("magnitude-2of4", [_prune("magnitude", pattern="2:4")]),
    Entry("wanda-2of4", [_prune("wanda", pattern="2:4")]),
    Entry("sparsegpt-2of4", [_prune("sparsegpt", pattern="2:4")]),
    Entry(
        "sparsegpt-2of4-recovered",
        [_prune("sparsegpt", pattern="2:4"), _DISTILL],
        {"perplexity": 1.8, "prose": 1.8},
        (1.5, 1.5),
        "mixed",
    ),
    Entry("layers-24", [{"kind": "drop-layers", "count": 6}]),
    Entry(
        "layers-24-distilled",
        [{"kind": "drop-layers", "count": 6}, _DISTILL],
        {"prose": 1.45},
        (None, 1.25),
        "mixed",
    ),
)

#: Of the small Llama that was never rounded: what int8 and int4 cost honest weights.
HONEST_ROWS: tuple[Entry, ...] = (
    INT8,
    Entry("int4-rtn", [_quantize("rtn", group=64)]),
    Entry("int4-gptq", [_quantize("gptq", group=64)], {"perplexity": 1.08, "prose": 1.25}),
    Entry("int4-awq", [_quantize("awq", group=64)], {"perplexity": 1.08, "prose": 1.25}),
)

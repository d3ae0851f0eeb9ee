"""The gate: which limits of a recipe a report misses, in sentences. Torch-free."""

import math
from collections.abc import Callable, Mapping

from turnmill.compression.evaluate.report import Report, Row
from turnmill.schemas.errors import InvalidInput

#: What a limit reads from a row, and whether it is a least value (else a greatest).
_LIMITS: dict[str, tuple[str, Callable[[Row], float], bool]] = {
    "perplexity": ("perplexity ratio on dialogue", lambda row: row.dialogue.ratio.value, False),
    "prose": ("perplexity ratio on prose", lambda row: row.prose.ratio.value, False),
    "size": ("size ratio", lambda row: row.size, False),
    "kl": ("KL divergence on dialogue", lambda row: row.dialogue.divergence.value, False),
    "top1": ("top-1 agreement on dialogue", lambda row: row.dialogue.top_1.value, True),
}


def misses(report: Report, limits: Mapping[str, float]) -> tuple[str, ...]:
    """Return one sentence for each limit that a measured model misses.

    Raises:
        InvalidInput: a limit is none that a report can decide.
    """
    if unknown := [name for name in limits if name not in _LIMITS]:
        raise InvalidInput(
            f"There is no limit '{unknown[0]}'. Limits: {', '.join(_LIMITS)}.", param="limits"
        )
    return tuple(
        sentence
        for row in report.candidates
        for name, limit in limits.items()
        if (sentence := _miss(row, name, limit))
    )


def _miss(row: Row, name: str, limit: float) -> str | None:
    label, read, is_least = _LIMITS[name]
    value = read(row)
    if math.isfinite(value) and (value >= limit if is_least else value <= limit):
        return None
    most = "least" if is_least else "most"
    return f"{row.name}: {label} {value:.5g}, allowed at {most} {limit:g}."

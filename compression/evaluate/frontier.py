"""Which models no other beats in quality, size and speed at once."""

from collections.abc import Sequence

from turnmill.compression.evaluate.report import Row


def on_frontier(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other row equals or beats everywhere and beats somewhere.

    Compared are the worse of the two perplexity ratios, the weights' bytes and, where all rows have
    it, the speed at batch 1.
    """
    with_speed = all(row.speed for row in rows)
    costs = {row.name: _costs(row, with_speed) for row in rows}
    return [
        row for row in rows if not any(_beats(other, costs[row.name]) for other in costs.values())
    ]


def worst_ratio(row: Row) -> float:
    """Return the greater of the perplexity ratios on dialogue and on unseen prose."""
    return max(row.dialogue.ratio.value, row.prose.ratio.value)


def _costs(row: Row, with_speed: bool) -> tuple[float, ...]:
    costs = (worst_ratio(row), float(row.weight_bytes))
    return (*costs, -row.speed.batch_1) if with_speed and row.speed else costs


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))

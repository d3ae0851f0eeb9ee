"""Plots of what was measured of replies: every figure with its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from turnmill.compression.evaluate.intervals import Figure
from turnmill.producer.evaluation.gate import Gate
from turnmill.producer.evaluation.measure import Group

_WIDTH, _ROW, _MARGIN = 11.0, 0.35, 1.2


def draw_groups(groups: Sequence[Group], path: Path) -> Path:
    """Draw the figures of each group below each other, one column a measure."""
    columns: dict[str, dict[str, Figure]] = {
        "length, words": {group.name: group.length for group in groups},
        "refusals": {group.name: group.refusals for group in groups},
        "repeats": {group.name: group.repeats for group in groups},
    }
    scored = [group for group in groups if group.scores]
    if scored:
        columns["BLEU"] = {group.name: group.scores.bleu for group in scored if group.scores}
    drawing = Drawing(figsize=(_WIDTH, _MARGIN + _ROW * len(groups)), layout="constrained")
    for axes, (label, figures) in zip(
        drawing.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True
    ):
        draw_intervals(axes, label, figures)
    return save(drawing, path)


def draw_intervals(axes: Axes, label: str, figures: Mapping[str, Figure]) -> None:
    """Draw figures with their intervals, each in a row of its own."""
    for row, figure in enumerate(figures.values()):
        axes.plot([figure.low, figure.high], [row, row], "-", color="C0")
        axes.plot(figure.value, row, "o", color="C0")
    axes.set_yticks(range(len(figures)), list(figures), size=8)
    axes.set_ylim(len(figures) - 0.5, -0.5)
    axes.set_xlabel(label)


def save(drawing: Drawing, path: Path) -> Path:
    """Write a drawing as a PNG file."""
    drawing.savefig(path, dpi=120)
    return path


def draw_gates(gates: Sequence[Gate], path: Path) -> Path:
    """Draw each gate's difference in units of its margin, beside what it allows."""
    drawing = Drawing(figsize=(_WIDTH, _MARGIN + _ROW * len(gates)), layout="constrained")
    axes = drawing.subplots()
    scaled = {
        f"{gate.name} ({gate.verdict})": Figure(
            value=gate.difference.value / _unit(gate),
            low=gate.difference.low / _unit(gate),
            high=gate.difference.high / _unit(gate),
        )
        for gate in gates
    }
    draw_intervals(axes, "difference, in margins", scaled)
    for limit in (-1, 1):
        axes.axvline(limit, color="C3", linewidth=0.8)
    axes.axvline(0, color="grey", linewidth=0.5)
    return save(drawing, path)


def _unit(gate: Gate) -> float:
    return gate.margin or 1.0

"""Plots of a report: the frontier of quality, size and speed, and the error of each layer."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from turnmill.compression.evaluate.frontier import on_frontier
from turnmill.compression.evaluate.report import Report, Row

_MEGA = 1e6
_DOMAINS = ("dialogue", "prose")


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw what the report has figures for, and return the files."""
    drawn = [_save(_frontier(report.rows), folder / "frontier.png")]
    if any(row.layer_errors for row in report.rows):
        drawn.append(_save(_layers(report.rows), folder / "layers.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path


def _frontier(rows: Sequence[Row]) -> Figure:
    """Every candidate by size (and speed) and perplexity ratio; those on the frontier filled."""
    with_speed = all(row.speed for row in rows)
    figure = Figure(figsize=(11, 4.5 * (2 if with_speed else 1)), layout="constrained")
    axes = figure.subplots(2 if with_speed else 1, 2, squeeze=False)
    for column, domain in enumerate(_DOMAINS):
        sizes = [row.weight_bytes / _MEGA for row in rows]
        _scatter(axes[0][column], rows, domain, sizes, "weights on disk, MB")
        if with_speed:
            speeds = [row.speed.batch_1 if row.speed else 0.0 for row in rows]
            _scatter(axes[1][column], rows, domain, speeds, "tokens/s at batch 1")
    return figure


def _scatter(
    axes: Axes, rows: Sequence[Row], domain: str, values: Sequence[float], label: str
) -> None:
    best = {row.name for row in on_frontier(rows)}
    for row, value in zip(rows, values, strict=True):
        ratio = getattr(row, domain).ratio.value
        if not math.isfinite(ratio):  # which no axis shows
            continue
        axes.plot(value, ratio, "o", color="C0", fillstyle="full" if row.name in best else "none")
        axes.annotate(row.name, (value, ratio), xytext=(4, 4), textcoords="offset points", size=7)
    axes.set_yscale("log")
    axes.axhline(1.0, color="grey", linewidth=0.5)
    axes.set_xlabel(label)
    axes.set_ylabel(f"perplexity on {domain}, × original")


def _layers(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.layer_errors:
            axes.plot(list(row.layer_errors.values()), ".-", linewidth=0.7, label=row.name)
    axes.set_xlabel("linear layer, in the order of the model")
    axes.set_ylabel("relative error of its weights")
    axes.legend(fontsize=7)
    return figure

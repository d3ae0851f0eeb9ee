"""Search among recipes: the cheapest first, within a budget of time, for the best small model.

Artifacts stay in the store, and a recipe that the budget cuts off resumes where it stopped: the
same search, run again, continues.
"""

import json
import math
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from turnmill.compression.artifact import Manifest
from turnmill.compression.checkpoint import load_config
from turnmill.compression.evaluate.frontier import on_frontier, worst_ratio
from turnmill.compression.evaluate.gate import misses
from turnmill.compression.evaluate.loading import weight_files
from turnmill.compression.evaluate.page import write_report
from turnmill.compression.evaluate.report import Judge, Measures, Report, Row
from turnmill.compression.late import measure_late
from turnmill.compression.pipeline import Evaluation, Job, compress
from turnmill.compression.recipe import Limits, Recipe, StepSpec
from turnmill.compression.step import Progress
from turnmill.compression.store import ModelStore
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

#: Seconds that a step took with 135 M parameters on two cores, to order recipes. Training steps
#: state their own time or steps.
_SECONDS = {"quantize": 90.0, "prune": 60.0, "drop-layers": 30.0, "export": 20.0}
_TRAINING_STEP_S = 2.0

#: Methods without a pass over the calibration text.
_QUICK = {"rtn", "magnitude", "bnb-int8", "bnb-nf4"}


class _BudgetSpent(Exception):
    pass


@dataclass(frozen=True)
class Trial:
    """What became of one recipe."""

    recipe: str
    outcome: Literal["made", "skipped", "cut off", "failed"]
    #: Why it was skipped, cut off or failed.
    reason: str = ""
    artifact: str | None = None
    row: Row | None = None
    #: Limits of the recipe that it misses.
    misses: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Found:
    """The result of a search: every trial, and the best artifact, if one fits."""

    trials: tuple[Trial, ...]
    best: Trial | None
    #: All models measured, the original first; None where none was made.
    report: Report | None


@dataclass(frozen=True)
class Bounds:
    """Seconds that a search may take, and bytes that the weights may."""

    budget_s: float
    max_bytes: int | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)


def search(
    job: Job,
    recipes: Iterable[Recipe],
    store: ModelStore,
    bounds: Bounds,
    measures: Measures | None = None,
) -> Found:
    """Try recipes, the cheapest first; `job` says for which model and on which texts.

    The best is the one of the least perplexity ratio (the worse of dialogue and prose) among those
    on the frontier that are small enough and miss no limit of their recipe.
    """
    search = _Search(job, store, bounds, measures or Measures(speed_rounds=0))
    trials = tuple(search.attempt(recipe) for recipe in sorted(recipes, key=expected_seconds))
    return search.found(trials)


def expected_seconds(recipe: Recipe) -> float:
    """Estimate what the recipe's steps take, to compare recipes with each other."""
    return sum(_step_seconds(step) for step in recipe.steps)


def expected_bytes(base: Path, recipe: Recipe) -> int:
    """Estimate the weights' bytes from the base's shapes and the recipe's bits and layers.

    Only quantization and `drop-layers` change the estimate; other weights take 16 bits.
    """
    blocks, others = _parameters(base)
    bits, layers = 16.0, 1.0
    for step in recipe.steps:
        options = step.options.model_dump()
        if weight_format := getattr(step.options, "format", None):
            bits = _bits(weight_format, options.get("group"))
        elif step.kind == "drop-layers":
            depth = load_config(base).num_hidden_layers
            layers *= 1 - (options["count"] or len(options["layers"])) / depth
    return int(blocks * layers * bits / 8 + others * 2)


def choose(trials: Sequence[Trial], max_bytes: int | None) -> Trial | None:
    """Choose the best trial, None where none is small enough and within its limits."""
    made = {trial.row.name: trial for trial in trials if trial.row}
    fitting = [
        row
        for row in on_frontier([trial.row for trial in trials if trial.row])
        if _is_finite(row)
        and not made[row.name].misses
        and (max_bytes is None or row.weight_bytes <= max_bytes)
    ]
    if not fitting:
        return None
    return made[min(fitting, key=lambda row: (worst_ratio(row), row.weight_bytes)).name]


class _Search:
    def __init__(self, job: Job, store: ModelStore, bounds: Bounds, measures: Measures) -> None:
        self._job = job
        self._store = store
        self._bounds = bounds
        self._measures = measures
        self._ends = bounds.clock() + bounds.budget_s
        self._judge: Judge | None = None
        self._last: Report | None = None

    def attempt(self, recipe: Recipe) -> Trial:
        """Make and measure one recipe's artifact, or say why not."""
        if reason := self._reason_to_skip(recipe):
            self._job.progress.note(f"{recipe.name}: skipped. {reason}")
            return Trial(recipe.name, "skipped", reason)
        started = self._bounds.clock()
        try:
            job = self._job_of(recipe)
            manifest = measure_late(job, self._store, compress(job, self._store))
        except _BudgetSpent:
            reason = "The budget was spent while it ran. The same search, run again, resumes it."
            self._job.progress.note(f"{recipe.name}: cut off. {reason}")
            return Trial(recipe.name, "cut off", reason)
        except InvalidInput as error:
            self._job.progress.note(f"{recipe.name}: failed. {error.message}")
            return Trial(recipe.name, "failed", error.message)
        return self._trial(recipe, manifest, self._bounds.clock() - started)

    def found(self, trials: tuple[Trial, ...]) -> Found:
        rows = [trial.row for trial in trials if trial.row]
        report = None
        if self._last:
            report = self._last.model_copy(update={"rows": (self._last.original, *rows)})
        return Found(trials, choose(trials, self._bounds.max_bytes), report)

    def _reason_to_skip(self, recipe: Recipe) -> str | None:
        left = self._ends - self._bounds.clock()
        if left <= 0:
            return "The budget is spent."
        size, most = expected_bytes(self._job.base, recipe), self._bounds.max_bytes
        if most is not None and size > most * 1.05:
            return f"Its weights would take about {size / 1e6:.0f} MB, over {most / 1e6:.0f} MB."
        return None

    def _job_of(self, recipe: Recipe) -> Job:
        return replace(
            self._job,
            name=f"{self._job.name}-{recipe.name}",
            recipe=recipe,
            evaluator=self._evaluate,
            progress=_UntilBudget(self._job.progress, recipe.name, self._over),
        )

    def _over(self) -> bool:
        return self._bounds.clock() >= self._ends

    def _evaluate(
        self,
        candidate: Path,
        base: Path,
        texts: Texts,
        limits: Limits,
        progress: Progress,
        folder: Path,
    ) -> Evaluation:
        """Measure beside the original, whose answers are computed once for all recipes."""
        if self._judge is None or not _same(self._judge.texts, texts):
            self._judge = Judge(base, texts, self._measures, progress)
        self._judge.progress = progress
        rows = [self._judge.original_row(), self._judge.row(candidate)]
        report = self._judge.report(self._judge.with_speeds(rows, [base, candidate]))
        missed = misses(report, limits.model_dump(exclude_none=True))
        write_report(report, folder, missed)
        return Evaluation(report.model_dump(mode="json"), missed)

    def _trial(self, recipe: Recipe, manifest: Manifest, seconds: float) -> Trial:
        if manifest.report is None:
            reason = "It was promoted without a report. Search under another --name."
            return Trial(recipe.name, "skipped", reason)
        self._last = Report.model_validate(manifest.report)
        row = self._last.candidates[0].model_copy(update={"name": recipe.name})
        self._job.progress.note(
            f"{recipe.name}: {row.weight_bytes / 1e6:.0f} MB, perplexity "
            f"{row.dialogue.ratio.value:.3f}× on dialogue, {row.prose.ratio.value:.3f}× on prose"
        )
        missed = manifest.misses
        return Trial(recipe.name, "made", "", manifest.name, row, missed, seconds)


class _UntilBudget:
    """Progress of one recipe that ends the recipe when the budget is spent."""

    def __init__(self, inner: Progress, recipe: str, is_over: Callable[[], bool]) -> None:
        self._inner = inner
        self._recipe = recipe
        self._is_over = is_over

    def start(self, total: float, label: str) -> None:
        self._check()
        self._inner.start(total, f"{self._recipe}: {label}")

    def advance(self, done: float = 1) -> None:
        self._check()
        self._inner.advance(done)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def _check(self) -> None:
        if self._is_over():
            raise _BudgetSpent


def _is_finite(row: Row) -> bool:
    return all(math.isfinite(each.ratio.value) for each in (row.dialogue, row.prose))


def _bits(weight_format: str, group: int | None) -> float:
    """Return the bits that a weight takes, its share of a 16-bit scale included."""
    if weight_format in {"int4", "bnb-nf4"}:
        return 4 + 16 / (group or 64)
    return 16.0 if weight_format == "dense" else 8 + 16 / (group or 1024)


def _same(one: Texts, other: Texts) -> bool:
    """Tell whether both measure on the same windows: recipes may cut them differently."""
    return bool(one.heldout.equal(other.heldout) and one.prose.equal(other.prose))


def _step_seconds(step: StepSpec) -> float:
    options = step.options.model_dump()
    if minutes := options.get("minutes"):
        return 60.0 * float(minutes)
    if steps := options.get("steps"):
        return _TRAINING_STEP_S * int(steps)
    quick = options.get("method") in _QUICK
    return 5.0 if quick else _SECONDS.get(step.kind, 60.0)


def _parameters(base: Path) -> tuple[int, int]:
    """Count the parameters of linear layers in decoder blocks, and all others."""
    blocks = others = 0
    for path in weight_files(base):
        if path.suffix != ".safetensors":
            continue
        for name, tensor in _header(path).items():
            if name == "__metadata__":
                continue
            count = 1
            for length in tensor["shape"]:
                count *= length
            is_linear = ".layers." in name and len(tensor["shape"]) == 2
            blocks, others = blocks + count * is_linear, others + count * (not is_linear)
    return blocks, others


def _header(path: Path) -> dict:  # type: ignore[type-arg]
    """Read the header of a safetensors file: its length, 8 bytes little-endian, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict = json.loads(file.read(length))  # type: ignore[type-arg]
    return header

"""`turnmill bench compression`: the whole table of what each recipe costs and gains, from recipes.

The rows run as a search does: a finished row is not made again, and a run that was interrupted
continues. Quality comes first; speed is then measured of all rows, interleaved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turnmill.benchmarks.compression_rows import HONEST_ROWS, ROWS, Entry
from turnmill.benchmarks.compression_texts import dialogues, prose, training_prose
from turnmill.compression.data import read_conversations
from turnmill.compression.evaluate.page import markdown, table, write_report
from turnmill.compression.evaluate.report import Measures, Report, Row
from turnmill.compression.evaluate.speed import measure_speeds
from turnmill.compression.pipeline import Job
from turnmill.compression.search import Bounds, Found, Trial, search
from turnmill.compression.step import Progress
from turnmill.compression.store import ModelStore
from turnmill.schemas.errors import InvalidInput

#: Minutes of training that make the small Llama.
_SMALL_LLAMA_MIN = 6.0


@dataclass(frozen=True)
class Plan:
    """What to measure, where, and for how long."""

    model: Path
    model_name: str
    #: Holds texts, artifacts and reports, so that a second run continues.
    folder: Path
    budget_s: float
    #: Names of rows; all when empty.
    only: tuple[str, ...] = ()
    speed_rounds: int = 1
    #: Whether to repeat the int4 rows on the small Llama.
    honest: bool = True


def run_compression(plan: Plan, progress: Progress) -> list[Path]:
    """Make and measure every row; return the pages that were written."""
    texts = plan.folder / "texts"
    rows, honest_rows = chosen(ROWS, plan.only), chosen(HONEST_ROWS, plan.only)
    if not rows:
        raise InvalidInput(
            f"No row is called {', '.join(plan.only)}. Rows: {', '.join(row.name for row in ROWS)}."
        )
    pages = [_table(plan, plan.model, plan.model_name, rows, progress)]
    if plan.honest and honest_rows:
        from turnmill.benchmarks.small_llama import small_llama

        llama = small_llama(
            plan.folder / "small",
            dialogues(texts),
            training_prose(texts),
            minutes=_SMALL_LLAMA_MIN,
            progress=progress,
        )
        pages.append(_table(plan, llama, "small-llama", honest_rows, progress))
    return pages


def chosen(rows: Sequence[Entry], only: Sequence[str]) -> list[Entry]:
    """Return the rows of these names, all where no name is given."""
    return [each for each in rows if not only or each.name in only]


def _table(
    plan: Plan, model: Path, name: str, entries: Sequence[Entry], progress: Progress
) -> Path:
    texts = plan.folder / "texts"
    job = Job(
        name=name,
        base=model,
        base_name=name,
        recipe=entries[0].recipe(),
        conversations=read_conversations([dialogues(texts)]),
        prose=prose(texts).read_text(encoding="utf-8"),
        progress=progress,
    )
    store = ModelStore(plan.folder / "models")
    measures = Measures(replies=8, reply_tokens=24, speed_rounds=0)
    found = search(job, [each.recipe() for each in entries], store, Bounds(plan.budget_s), measures)
    folder = plan.folder / name
    if found.report:
        report = _with_speeds(plan, found, model, store, progress)
        write_report(report, folder)
        page = folder / "report.md"
        page.write_text(markdown(report) + "\n" + outcome(entries, found.trials), encoding="utf-8")
    return folder / "report.md"


def outcome(entries: Sequence[Entry], trials: Sequence[Trial]) -> str:
    """Render what each row must reach, aims at and reached, and why rows are missing."""
    by_name = {trial.recipe: trial for trial in trials}
    lines = [_outcome(entry, by_name[entry.name]) for entry in entries]
    head = ("row", "dialogue", "prose", "at least", "aim", "verdict")
    return "## What was to be reached\n\n" + table(head, lines) + "\n"


def _outcome(entry: Entry, trial: Trial) -> tuple[str, ...]:
    least = ", ".join(f"{name} {limit:g}" for name, limit in entry.least.items()) or "–"
    aim = " / ".join("–" if each is None else f"{each:g}" for each in entry.aim)
    if trial.row is None:
        return (entry.name, "–", "–", least, aim, f"{trial.outcome}: {trial.reason}")
    ratios = [trial.row.dialogue.ratio.value, trial.row.prose.ratio.value]
    return (entry.name, *(f"{each:.3f}" for each in ratios), least, aim, _verdict(entry, trial))


def _verdict(entry: Entry, trial: Trial) -> str:
    if trial.misses:
        return f"missed: {' '.join(trial.misses)}"
    if trial.row and any(entry.aim):
        row: Row = trial.row
        reached = zip((row.dialogue.ratio.value, row.prose.ratio.value), entry.aim, strict=True)
        if all(aim is None or value <= aim for value, aim in reached):
            return "aim reached"
    return "reached" if entry.least else "for comparison"


def _with_speeds(
    plan: Plan, found: Found, model: Path, store: ModelStore, progress: Progress
) -> Report:
    """Measure the speed of the original and of rows whose layers differ in kind from it.

    Pruned weights are zeros in dense matrices: their speed is the original's.
    """
    assert found.report is not None
    if not plan.speed_rounds:
        return found.report
    paths = {found.report.original.name: model}
    paths |= {
        trial.recipe: store.path(trial.artifact)
        for trial in found.trials
        if trial.row and trial.artifact and (trial.row.quantization or trial.row.size < 0.95)
    }
    progress.start(plan.speed_rounds * len(paths), "measuring speed")
    speeds = measure_speeds(paths, rounds=plan.speed_rounds, progress=progress)
    first = speeds[found.report.original.name]
    rows = [row.with_speed(speeds.get(row.name), first) for row in found.report.rows]
    return found.report.model_copy(update={"rows": tuple(rows)})

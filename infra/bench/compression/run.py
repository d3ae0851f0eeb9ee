"""`turnmill bench compression`: the whole table of what each recipe costs and gains, from recipes.

The rows run as a search does: a finished row is not made again, and a run that was interrupted
continues. Quality comes first; speed is then measured of all rows, interleaved.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from turnmill.compression.checkpoint import load_tokenizer
from turnmill.compression.data import read_conversations
from turnmill.compression.evaluate.markdown import table
from turnmill.compression.evaluate.page import markdown, write_report
from turnmill.compression.evaluate.report import Judge, Measures, Report, Row
from turnmill.compression.evaluate.speed import measure_speeds
from turnmill.compression.pipeline import Job
from turnmill.compression.search import Bounds, Found, Trial, search
from turnmill.compression.step import Progress
from turnmill.compression.store import ModelStore
from turnmill.compression.texts import Conversation, Texts, Windows, make_texts
from turnmill.infra.bench.compression.rows import HONEST_ROWS, ROWS, WINDOWS, Entry
from turnmill.infra.bench.compression.texts import dialogues, mixed, prose, training_prose
from turnmill.infra.bench.llm_compressor import quantize_in
from turnmill.schemas.errors import InvalidInput

#: Steps of training that make the small Llama: minutes on two free cores.
_SMALL_LLAMA_STEPS = 400


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
    #: The Python of an environment with llm-compressor, whose int4 is measured beside ours.
    llm_compressor: Path | None = None
    #: Whether to compare students of hard labels with those of soft labels as well.
    students: bool = False


def check_rows(names: Sequence[str]) -> None:
    """Raise `InvalidInput` for a name that no row has, before models and texts are fetched."""
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise InvalidInput(f"No row is called {', '.join(unknown)}. Rows: {', '.join(known)}.")


def run_compression(plan: Plan, progress: Progress) -> list[Path]:
    """Make and measure every row; return the pages that were written."""
    texts = plan.folder / "texts"
    rows, honest_rows = chosen(ROWS, plan.only), chosen(HONEST_ROWS, plan.only)
    pages = [_table(plan, plan.model, plan.model_name, rows, progress)]
    if plan.students:
        pages.append(_students(plan, progress))
    if plan.honest and honest_rows:
        from turnmill.infra.bench.compression.small_llama import small_llama

        llama = small_llama(
            plan.folder / "small",
            dialogues(texts),
            training_prose(texts),
            steps=_SMALL_LLAMA_STEPS,
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
    store = ModelStore(plan.folder / "models")
    found = _found(plan, model, name, entries, store, progress)
    folder = plan.folder / name
    if found.report:
        report = _with_speeds(plan, found, model, store, progress)
        if plan.llm_compressor:
            report = _with_peer(plan, report, model, progress)
        write_report(report, folder)
        page = folder / "report.md"
        page.write_text(markdown(report) + "\n" + outcome(entries, found.trials), encoding="utf-8")
    return folder / "report.md"


def _found(
    plan: Plan,
    model: Path,
    name: str,
    entries: Sequence[Entry],
    store: ModelStore,
    progress: Progress,
) -> Found:
    """Make and measure the rows, those of one kind of calibration text after the other's."""
    ends = time.monotonic() + plan.budget_s
    found = Found((), None, None)
    for kind, read in _CONVERSATIONS.items():
        recipes = [each.recipe() for each in entries if each.texts == kind]
        if not recipes:
            continue
        job = Job(
            name=name,
            base=model,
            base_name=name,
            recipe=recipes[0],
            conversations=read(plan.folder / "texts"),
            prose=_measured_prose(plan),
            progress=progress,
        )
        bounds = Bounds(ends - time.monotonic())
        found = _together(found, search(job, recipes, store, bounds, _MEASURES))
    return found


def _measured_prose(plan: Plan) -> str:
    return prose(plan.folder / "texts").read_text(encoding="utf-8")


_MEASURES = Measures(replies=8, reply_tokens=24, speed_rounds=0)

#: Reads what calibrates and trains, by the kind of text that an entry names.
_CONVERSATIONS: dict[str, Callable[[Path], list[Conversation]]] = {
    "dialogue": lambda texts: read_conversations([dialogues(texts)]),
    "mixed": mixed,
}


def _together(first: Found, second: Found) -> Found:
    """Put two searches into one result: both measured on the same windows."""
    report = first.report or second.report
    if first.report and second.report:
        rows = (*first.report.rows, *second.report.candidates)
        report = first.report.model_copy(update={"rows": rows})
    return Found((*first.trials, *second.trials), None, report)


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


def _with_peer(plan: Plan, report: Report, model: Path, progress: Progress) -> Report:
    """Add llm-compressor's int4, calibrated on the windows that ours is calibrated on."""
    assert plan.llm_compressor is not None
    texts = _dialogue_texts(plan, model)
    name = "int4-llm-compressor"
    folder = plan.folder / "peers" / f"{model.name}-{name}"
    progress.note(f"{name}: quantizing in {plan.llm_compressor}")
    quantize_in(plan.llm_compressor, model, texts.calibration, folder)
    row = Judge(model, texts, _MEASURES, progress).row(folder, name)
    return report.model_copy(update={"rows": (*report.rows, row)})


def _students(plan: Plan, progress: Progress) -> Path:
    from turnmill.infra.bench.compression.students import Comparison, Learned, page_of

    texts = _dialogue_texts(plan, plan.model)
    folder = plan.folder / "students"
    kept = folder / "students.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    found = [Learned(**json.loads(line)) for line in lines]
    for each in Comparison(plan.model, texts, folder / "runs", progress).run(found):
        found.append(each)
        progress.note(f"{each}")
        with kept.open("a") as file:
            file.write(json.dumps(asdict(each)) + "\n")
        (folder / "report.md").write_text(page_of(found), encoding="utf-8")
    return folder / "report.md"


def _dialogue_texts(plan: Plan, model: Path) -> Texts:
    return make_texts(
        _CONVERSATIONS["dialogue"](plan.folder / "texts"),
        _measured_prose(plan),
        load_tokenizer(model),
        Windows.model_validate(WINDOWS),
    )

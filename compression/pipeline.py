"""The pipeline: a model, a recipe and texts in, a measured artifact out.

Each step starts from what the step before left on disk, whether the pipeline was killed in between
or not, so that an interrupted pipeline ends in the same artifact, bit for bit.
"""

import fcntl
import json
import os
import platform
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from turnmill.compression.artifact import (
    PARTIAL,
    BaseModelRecord,
    Manifest,
    StepRecord,
    digest_of,
    digest_of_json,
    read_manifest,
    verify,
    write_artifact,
)
from turnmill.compression.checkpoint import (
    MODEL,
    check_context,
    format_of,
    load_config,
    load_model,
    load_tokenizer,
    restore_packed,
    save_model,
    save_state,
    told_by,
)
from turnmill.compression.recipe import Limits, Recipe, StepSpec
from turnmill.compression.step import Progress, Silent, State, check_libraries, find_step
from turnmill.compression.store import LOCK, ModelStore, check_name
from turnmill.compression.texts import Conversation, Texts, make_texts
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Libraries whose versions decide what a step computes.
LIBRARIES = (
    "turnmill",
    "torch",
    "transformers",
    "compressed-tensors",
    "bitsandbytes",
    "peft",
    "trl",
)

#: What a step puts into its scratch folder under this name becomes part of the artifact.
FILES = "files"

#: The artifact's folder of what was measured: a page, plots, and the figures as JSON.
REPORT = "report"


@dataclass(frozen=True)
class Evaluation:
    #: As JSON; None if nothing was measured.
    report: dict[str, object] | None
    #: A sentence for each limit that the artifact misses.
    misses: tuple[str, ...] = ()


#: Measures a candidate's folder beside the base model's, and writes its pages into the last folder.
Evaluator = Callable[[Path, Path, Texts, Limits, Progress, Path], Evaluation]


@dataclass(frozen=True)
class Job:
    """What is to be compressed, how, and what the artifact is called."""

    name: str
    #: A transformers checkpoint, and what people call it.
    base: Path
    base_name: str
    recipe: Recipe
    conversations: Sequence[Conversation]
    #: The text that no recipe sees.
    prose: str
    evaluator: Evaluator | None = None
    progress: Progress = field(default_factory=Silent)


def compress(job: Job, store: ModelStore) -> Manifest:
    """Run the recipe and put the artifact into the store; resume where a killed run stopped.

    An artifact of this name that was made of the same inputs is returned as it is.

    Raises:
        InvalidInput: the store has another artifact of this name, or the inputs do not fit.
    """
    check_name(job.name)
    check_libraries(each.kind for each in job.recipe.steps)
    texts = make_texts(job.conversations, job.prose, load_tokenizer(job.base), job.recipe.windows)
    for note in texts.notes:
        job.progress.note(note)
    plan = Manifest(
        name=job.name,
        base=BaseModelRecord(name=job.base_name, sha256=digest_of(job.base)),
        recipe=job.recipe.as_json(),
        data_sha256=texts.digest,
        inputs={**texts.judging(), **_students(job.recipe)},
        format="dense",
        versions=library_versions(),
        files={},
    )
    target = store.folder / job.name
    store.mend()
    if target.exists():
        return _made_before(target, plan)
    config = load_config(job.base)
    check_context(config, job.recipe.windows.length)
    for each in job.recipe.steps:
        config = each.options.check(config)
    with _workplace(store, plan, job.progress) as folder:
        if target.exists():  # Another process has made it meanwhile.
            return _made_before(target, plan)
        return _Run(job, texts, folder).finish(plan, target)


def measured(
    candidate: Path, base: Path, texts: Texts, limits: Limits, progress: Progress, folder: Path
) -> Evaluation:
    """Measure the candidate beside its base on held-out text; an `Evaluator`."""
    from turnmill.compression.evaluate.gate import misses
    from turnmill.compression.evaluate.page import write_report
    from turnmill.compression.evaluate.report import evaluate

    report = evaluate(candidate, base, texts, progress)
    missed = misses(report, limits.model_dump(exclude_none=True))
    write_report(report, folder, missed)
    return Evaluation(report.model_dump(mode="json"), missed)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a step computes, and Python's."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


def _made_before(target: Path, plan: Manifest) -> Manifest:
    manifest = read_manifest(target)
    theirs, ours = _made_of(manifest), _made_of(plan)
    # A manifest of a release that recorded fewer inputs is held to those.
    others = [what for what in theirs if theirs[what] != ours.get(what)]
    if others:
        raise InvalidInput(
            f"The store has another artifact '{plan.name}': its {others[0]} is another. "
            "Choose another --name.",
            param="name",
        )
    return verify(target)


def _made_of(manifest: Manifest) -> dict[str, object]:
    return {
        "base model": manifest.base,
        "recipe": manifest.recipe,
        "training data": manifest.data_sha256,
        **manifest.inputs,
    }


def _students(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of each checkpoint that a step names: the recipe has its path alone.

    Raises:
        InvalidInput: there is no such checkpoint.
    """
    found = {}
    for number, spec in enumerate(recipe.steps, start=1):
        student: Path | None = getattr(spec.options, "student", None)
        if student is None:
            continue
        if not (student / "config.json").is_file():
            raise InvalidInput(
                f"There is no checkpoint in {student}: no config.json.", param="student"
            )
        found[f"student of step {number}"] = digest_of(student)
    return found


@contextmanager
def _workplace(store: ModelStore, plan: Manifest, progress: Progress) -> Iterator[Path]:
    """The folder that these inputs always work in; it is removed when the artifact is made."""
    folder = store.runs / digest_of_json(plan.model_dump(mode="json"))[:16]
    with _lock_of(folder, progress):
        yield folder
        shutil.rmtree(folder)


def _lock_of(folder: Path, progress: Progress) -> TextIO:
    """Make the folder and return its lock, held, once no other process works in it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / LOCK).open("w")
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("another process works on the same artifact: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Who is done removes the folder with the lock in it: it may be the lock of nothing now.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
                return lock
        lock.close()


class _Run:
    """One job in its workplace: what is there already is not done again."""

    def __init__(self, job: Job, texts: Texts, folder: Path) -> None:
        self._job = job
        self._texts = texts
        self._folder = folder
        self._steps = job.recipe.steps
        #: Called as the artifact will be, since reports name what they measure by its folder.
        self._final = folder / "final" / job.name

    def finish(self, plan: Manifest, target: Path) -> Manifest:
        for index, spec in enumerate(self._steps):
            self._once(f"step-{index}", partial(self._run_step, index, spec))
        self._once("final", self._save_final)
        self._once("evaluation", self._evaluate)
        evaluation = json.loads((self._folder / "evaluation" / "evaluation.json").read_text())
        told = [told_by(self._folder / f"step-{index}") for index in range(len(self._steps))]
        manifest = plan.model_copy(
            update={
                "format": format_of(self._folder / f"step-{len(self._steps) - 1}"),
                "steps": tuple(
                    StepRecord(kind=spec.kind, told=each)
                    for spec, each in zip(self._steps, told, strict=True)
                ),
                "report": evaluation["report"],
                "misses": tuple(evaluation["misses"]),
            }
        )
        return write_artifact(target, self._collect, manifest)

    def _once(self, name: str, fill: Callable[[Path], None]) -> None:
        """Fill a folder aside and rename it, unless an earlier run did."""
        folder = self._folder / name
        if folder.exists():
            self._job.progress.note(f"{name}: finished before, not repeated")
            return
        aside = self._folder / (name + PARTIAL)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        fill(aside)
        aside.rename(folder)

    def _run_step(self, index: int, spec: StepSpec, folder: Path) -> None:
        self._job.progress.note(f"step {index + 1} of {len(self._steps)}: {spec.kind}")
        scratch = self._folder / f"scratch-{index}"
        scratch.mkdir(exist_ok=True)
        state = self._load(index, scratch)
        _seed(state.seed)
        told = find_step(spec.kind)(state, spec.options, self._job.progress)
        save_state(state, told, folder)
        if (scratch / FILES).is_dir():
            shutil.copytree(scratch / FILES, folder / FILES)

    def _load(self, index: int, scratch: Path) -> State:
        """Load what the step of this index starts from."""
        before = self._folder / f"step-{index - 1}"
        source = before / MODEL if index else self._job.base
        state = State(
            model=load_model(source),
            tokenizer=load_tokenizer(source),
            texts=self._texts,
            teacher=self._teacher,
            folder=scratch,
            seed=self._job.recipe.seed + index,
            dtype=self._job.recipe.dtype,
        )
        if index:
            restore_packed(state, before)
        return state

    def _teacher(self) -> "PreTrainedModel":
        return load_model(self._job.base)

    def _save_final(self, folder: Path) -> None:
        state = self._load(len(self._steps), folder)
        save_model(state, folder / self._final.name)

    def _evaluate(self, folder: Path) -> None:
        evaluation = Evaluation(None)
        if self._job.evaluator:
            evaluation = self._job.evaluator(
                self._final,
                self._job.base,
                self._texts,
                self._job.recipe.limits,
                self._job.progress,
                folder / REPORT,
            )
        (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation)))

    def _collect(self, folder: Path) -> None:
        """Put together what the artifact holds: the checkpoint, the report and the exports."""
        shutil.copytree(self._final, folder, dirs_exist_ok=True)
        pages = self._folder / "evaluation" / REPORT
        if pages.is_dir():
            shutil.copytree(pages, folder / REPORT)
        for index in range(len(self._steps)):
            files = self._folder / f"step-{index}" / FILES
            if files.is_dir():
                shutil.copytree(files, folder, dirs_exist_ok=True)


def _seed(seed: int) -> None:
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)

"""Measure an artifact that was made without an evaluation, and put the report into it."""

import os
import shutil
import tempfile
from pathlib import Path

from turnmill.compression.artifact import MANIFEST, Manifest
from turnmill.compression.checkpoint import load_tokenizer
from turnmill.compression.pipeline import REPORT, Job
from turnmill.compression.store import ModelStore
from turnmill.compression.texts import make_texts


def measure_late(job: Job, store: ModelStore, manifest: Manifest) -> Manifest:
    """Return the manifest with a report, measured now if it has none and the job measures.

    What was promoted stays as it is: the record names its checksum, and workers serve it.

    Args:
        job: the one that made the artifact, now with an evaluator.

    Raises:
        InvalidInput: another process has promoted or replaced the artifact meanwhile.
    """
    if manifest.report is not None or job.evaluator is None:
        return manifest
    if store.was_promoted(manifest):
        job.progress.note(
            f"{manifest.name} was promoted without a report and stays as it is. To measure, choose "
            "another --name"
        )
        return manifest
    job.progress.note(f"{manifest.name} was made before, and is measured now")
    texts = make_texts(job.conversations, job.prose, load_tokenizer(job.base), job.recipe.windows)
    folder = store.path(manifest.name)
    with tempfile.TemporaryDirectory() as aside:
        pages = Path(aside) / REPORT
        evaluation = job.evaluator(folder, job.base, texts, job.recipe.limits, job.progress, pages)

        def fill(target: Path) -> None:
            # Links: the store is locked meanwhile, and weights are gigabytes.
            shutil.copytree(folder, target, dirs_exist_ok=True, copy_function=_link)
            (target / MANIFEST).unlink()
            if pages.is_dir():
                shutil.copytree(pages, target / REPORT)

        after = manifest.model_copy(
            update={"report": evaluation.report, "misses": evaluation.misses}
        )
        return store.replace(manifest, fill, after)


def _link(source: str, target: str) -> None:
    """Link a file under another name, or copy it where the file system has no such links."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)

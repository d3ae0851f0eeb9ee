"""Bots that come with Turnmill: each a folder with its definition, documents and questions."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from turnmill.producer.cli.context import System
from turnmill.producer.knowledge.calibration.run import calibrate_collection
from turnmill.producer.knowledge.sync import Change, Synced, follow, sync
from turnmill.producer.tenants import save_bot
from turnmill.schemas.channels.configuration import load_configuration
from turnmill.schemas.errors import NotFound
from turnmill.schemas.files.opening import open_files

#: Of the questions that a sample's gate lets pass, the share whose answer is among its passages.
PRECISION = 0.8


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a sample, and the document that answers it: None if none does."""

    text: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        """What the bot is: the first line of its definition, a comment."""
        return (self.folder / "turnmill.toml").read_text(encoding="utf-8").splitlines()[0][2:]

    @property
    def documents(self) -> Path | None:
        """Its collection's folder. A bot without one answers whatever it is asked."""
        folder = self.folder / "documents"
        return folder if folder.is_dir() else None

    def questions(self) -> Iterator[Question]:
        for line in (self.folder / "questions.jsonl").read_text(encoding="utf-8").splitlines():
            content = json.loads(line)
            yield Question(content["question"], content.get("source"))


def samples_folder() -> Path:
    """Where the samples lie that come with Turnmill."""
    from turnmill.infra import embedded

    return Path(embedded.__path__[0]).parent.resolve() / "samples"


def list_samples() -> list[Sample]:
    return [Sample(path.parent) for path in sorted(samples_folder().glob("bots/*/turnmill.toml"))]


def find_sample(name: str) -> Sample:
    """Raises `NotFound`."""
    samples = {sample.name: sample for sample in list_samples()}
    if name not in samples:
        raise NotFound(f"There is no sample '{name[:100]}'. There are: {', '.join(samples)}.")
    return samples[name]


def install(system: System, sample: Sample) -> None:
    """Save the sample's bot for the system's tenant, and bring its collection up to date."""
    configuration = load_configuration(sample.folder / "turnmill.toml")
    for name, bot in configuration.bots.items():
        save_bot(
            system.database,
            system.tenant_id,
            name,
            bot.model or system.settings.engine.model_name,
            bot.instructions.strip(),
            bot.params,
            policies=bot.policies,
        )
    if sample.documents:
        place = (system.database, system.tenant_id, sample.name)
        synced = list(sync(*place, sample.documents))
        _index(system, synced)
        if any(each.change is not Change.UNCHANGED for each in synced):
            calibrate_collection(*place, PRECISION)


def _index(system: System, synced: Sequence[Synced]) -> None:
    """Read the documents in this process: a sample may be installed before a worker runs."""
    from turnmill.workers.upkeep.indexer import Indexer

    files = open_files(system.database, system.settings)
    with closing(Indexer(system.database, files, system.settings.worker.lease_s)) as indexer:
        indexer.start()
        for _ in follow(system.database, synced):
            pass

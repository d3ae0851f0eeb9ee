"""Measure models beside their original, all on the same texts, and keep what was measured."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ConfigDict

from turnmill.compression.checkpoint import check_finite
from turnmill.compression.evaluate import agreement, layers
from turnmill.compression.evaluate.agreement import Original
from turnmill.compression.evaluate.intervals import Figure, Number, bootstrap, mean
from turnmill.compression.evaluate.loading import (
    Dtype,
    bytes_of,
    load_candidate,
    load_dense,
    load_tokenizer,
    quantization_of,
)
from turnmill.compression.evaluate.perplexity import perplexity, perplexity_ratio
from turnmill.compression.evaluate.remarks import remarks_of
from turnmill.compression.evaluate.speed import Speed, measure_speeds
from turnmill.compression.evaluate.text_scores import TextScores, score_texts
from turnmill.compression.step import Progress, Silent
from turnmill.compression.texts import Conversation, Texts
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


#: What the first row of a report is called.
ORIGINAL = "original"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Machine(_Part):
    """Where figures were taken."""

    processor: str
    cores: int
    memory_bytes: int
    versions: dict[str, str]


class Domain(_Part):
    """How a model does on one kind of text. Ratio, divergence and top-1 are to the original."""

    perplexity: Figure
    ratio: Figure
    #: KL(original ‖ model), nats a token.
    divergence: Figure
    #: Share of positions at which both put the same token first.
    top_1: Figure


class Replies(_Part):
    """Greedy replies to the held-out conversations' opening messages."""

    #: Share that equals the original's reply to the letter.
    equal: float
    #: Share of the words before the first difference.
    agreement: Figure
    #: Against the original's replies, and against what people answered.
    to_original: TextScores
    to_people: TextScores


class Row(_Part):
    """All that was measured of one model."""

    name: str
    weight_bytes: int
    #: Weight bytes over the original's.
    size: float
    #: The method in config.json, `gguf`, or None for dense weights.
    quantization: str | None
    dialogue: Domain
    prose: Domain
    replies: Replies | None = None
    speed: Speed | None = None
    #: Relative error of each linear layer's weights; empty where layers do not correspond.
    layer_errors: dict[str, Number] = {}
    #: What a reader must know to read the figures.
    remarks: tuple[str, ...] = ()

    def with_speed(self, speed: Speed | None, original: Speed) -> "Row":
        """Return the row with its speed and what must be said of it; itself without a speed."""
        if speed is None:
            return self
        remarks = remarks_of(
            quantization=self.quantization,
            size=self.size,
            layer_errors=self.layer_errors,
            dialogue=self.dialogue.ratio.value,
            speed=speed,
            original_speed=original,
        )
        return self.model_copy(update={"speed": speed, "remarks": remarks})


class Report(_Part):
    """Models beside the original, which is the first row."""

    machine: Machine
    dtype: Dtype
    #: SHA-256 of what calibrated and trained, none of which was measured on.
    data_sha256: str
    windows: dict[str, tuple[int, int]]
    rows: tuple[Row, ...]

    @property
    def original(self) -> Row:
        return self.rows[0]

    @property
    def candidates(self) -> tuple[Row, ...]:
        return self.rows[1:]


@dataclass(frozen=True)
class Measures:
    """What to measure beside perplexity and agreement."""

    #: Conversations to reply to; 0 leaves replies out.
    replies: int = 8
    reply_tokens: int = 24
    #: Rounds of the speed measurement; 0 leaves it out.
    speed_rounds: int = 1
    dtype: Dtype = "bfloat16"


@dataclass
class Judge:
    """Measures models beside one original, whose answers it computes once."""

    original: Path
    texts: Texts
    measures: Measures = field(default_factory=Measures)
    progress: Progress = field(default_factory=Silent)
    _heard: "dict[str, Original]" = field(default_factory=dict, init=False)
    _replies: list[str] = field(default_factory=list, init=False)
    _row: Row | None = field(default=None, init=False)

    def original_row(self) -> Row:
        """Measure the original, without speed."""
        if self._row is None:
            self.progress.start(self._work, f"measuring {ORIGINAL}")
            model = self._load(self.original)
            check_finite(model, self.original)
            for domain, windows in self._domains().items():
                self._heard[domain] = agreement.listen(model, windows, self.progress)
            self._replies = self._reply(model, self.original)
            self._row = self._make_row(
                ORIGINAL,
                self.original,
                {domain: _as_followed(heard) for domain, heard in self._heard.items()},
                self._replies,
                {},
            )
        return self._row

    def row(self, path: Path, name: str | None = None) -> Row:
        """Measure a model, without speed.

        Raises:
            InvalidInput: it reads other tokens than the original.
        """
        self._require_same_tokens(path, name or path.name)
        self.original_row()
        self.progress.start(self._work, f"measuring {name or path.name}")
        model = self._load(path)
        followed = {
            domain: agreement.follow(model, windows, self._heard[domain], self.progress)
            for domain, windows in self._domains().items()
        }
        replies = self._reply(model, path)
        del model
        dense = [load_dense(each, self.measures.dtype) for each in (path, self.original)]
        errors = layers.layer_errors(*dense)
        return self._make_row(name or path.name, path, followed, replies, errors)

    def with_speeds(self, rows: Sequence[Row], paths: Sequence[Path]) -> tuple[Row, ...]:
        """Measure the speed of these models, interleaved; the first is the original."""
        rounds = self.measures.speed_rounds
        if not rounds:
            return tuple(rows)
        self.progress.start(rounds * len(rows), "measuring speed")
        named = {str(index): path for index, path in enumerate(paths)}
        speeds = measure_speeds(
            named, rounds=rounds, dtype=self.measures.dtype, progress=self.progress
        )
        return tuple(
            row.with_speed(speeds[str(index)], speeds["0"]) for index, row in enumerate(rows)
        )

    def report(self, rows: Sequence[Row]) -> Report:
        """Put rows, the original's first, into a report."""
        domains = self._domains()
        return Report(
            machine=this_machine(),
            dtype=self.measures.dtype,
            data_sha256=self.texts.digest,
            windows={name: (each.shape[0], each.shape[1]) for name, each in domains.items()},
            rows=tuple(rows),
        )

    @property
    def _work(self) -> int:
        windows = sum(len(each) for each in self._domains().values())
        return windows + len(self._openings())

    def _domains(self) -> "dict[str, Tensor]":
        return {"dialogue": self.texts.heldout, "prose": self.texts.prose}

    def _openings(self) -> list[Conversation]:
        return agreement.answerable(self.texts.conversations, self.measures.replies)

    def _load(self, path: Path) -> "PreTrainedModel":
        return load_candidate(path, self.measures.dtype)

    def _require_same_tokens(self, path: Path, name: str) -> None:
        quantization_of(path)  # Raises where there is no model.
        windows = self._domains().values()
        used = sorted({int(token) for each in windows for token in each.unique()})
        ours, theirs = (load_tokenizer(each) for each in (self.original, path))
        read = zip(*(each.convert_ids_to_tokens(used) for each in (ours, theirs)), strict=True)
        moved = sum(one != other for one, other in read)
        if moved:
            raise InvalidInput(
                f"'{name}' has another tokenizer than the original: {moved} of {len(used)} tokens "
                "of the texts have another number or none. Perplexity, KL and top-1 compare token "
                "by token. Name models of the original's family.",
                param="model",
            )

    def _reply(self, model: "PreTrainedModel", path: Path) -> list[str]:
        return agreement.greedy_replies(
            model,
            load_tokenizer(path),
            self._openings(),
            max_tokens=self.measures.reply_tokens,
            progress=self.progress,
        )

    def _make_row(
        self,
        name: str,
        path: Path,
        followed: Mapping[str, agreement.Followed],
        replies: list[str],
        errors: dict[str, float],
    ) -> Row:
        domains = {
            domain: _domain(each, self._heard[domain].losses) for domain, each in followed.items()
        }
        weight_bytes, quantization = bytes_of(path), quantization_of(path)
        size = weight_bytes / max(bytes_of(self.original), 1)
        return Row(
            name=name,
            weight_bytes=weight_bytes,
            size=size,
            quantization=quantization,
            dialogue=domains["dialogue"],
            prose=domains["prose"],
            replies=self._score(replies) if replies else None,
            layer_errors=errors,
            remarks=remarks_of(
                quantization=quantization,
                size=size,
                layer_errors=errors,
                dialogue=domains["dialogue"].ratio.value,
            ),
        )

    def _score(self, replies: list[str]) -> Replies:
        people = agreement.human_replies(self._openings())
        return Replies(
            equal=agreement.equal_share(replies, self._replies),
            agreement=bootstrap(agreement.reply_agreement(replies, self._replies), mean),
            to_original=score_texts(replies, self._replies),
            to_people=score_texts(replies, people),
        )


def evaluate(
    folder: Path,
    reference: Path,
    texts: Texts,
    progress: Progress | None = None,
    measures: Measures | None = None,
) -> Report:
    """Measure one model beside the model that it was made of.

    Raises:
        InvalidInput: a path holds no model.
        EngineFailure: a model cannot be run.
    """
    return evaluate_all([folder], reference, texts, progress, measures)


def evaluate_all(
    paths: Sequence[Path],
    reference: Path,
    texts: Texts,
    progress: Progress | None = None,
    measures: Measures | None = None,
) -> Report:
    """Measure several models beside one original, their speeds interleaved."""
    judge = Judge(reference, texts, measures or Measures(), progress or Silent())
    rows = [judge.original_row(), *(judge.row(path) for path in paths)]
    return judge.report(judge.with_speeds(rows, [reference, *paths]))


def this_machine() -> Machine:
    """Describe the machine and the libraries that compute."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        versions={"python": platform.python_version(), **_versions("torch", "transformers")},
    )


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _as_followed(original: Original) -> agreement.Followed:
    """The original follows itself exactly."""
    count = len(original.losses)
    return agreement.Followed(original.losses, [0.0] * count, [1.0] * count)


def _domain(followed: agreement.Followed, original: Sequence[float]) -> Domain:
    return Domain(
        perplexity=perplexity(followed.losses),
        ratio=perplexity_ratio(followed.losses, original),
        divergence=bootstrap(followed.divergence, mean),
        top_1=bootstrap(followed.first_equal, mean),
    )

"""Students of hard labels beside students of hard and soft labels, at equal time, over seeds.

The teacher first learns the dialogues; its probabilities are cached once. Time is the processor's:
on a machine that does other things besides, seconds on the clock would compare its load.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from turnmill.compression.checkpoint import load_model
from turnmill.compression.distill.cache import cache_teacher
from turnmill.compression.distill.finetune import next_token_loss, rows_of_length
from turnmill.compression.distill.step import distillation
from turnmill.compression.distill.students import from_layers
from turnmill.compression.distill.training import Loss, TrainingOptions, train
from turnmill.compression.evaluate.markdown import table
from turnmill.compression.evaluate.perplexity import perplexity, window_losses
from turnmill.compression.prune.structured import block_influence, decoder_layers, evenly_spaced
from turnmill.compression.step import Progress
from turnmill.compression.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Steps of a student of hard and soft labels, by the share of its teacher's layers. One of hard
#: labels alone takes as many steps more as cost the same time.
STUDENTS = {0.8: 16, 0.2: 48}
SEEDS = (1, 2, 3)
LABELS = ("hard", "hard and soft")

#: The teacher's own steps, the windows that it comments on, and the steps whose time is taken.
_TEACHER_STEPS, _WINDOWS, _TIMED = 24, 256, 4

_ALPHA, _TEMPERATURE = 0.5, 1.0


@dataclass(frozen=True)
class Learned:
    """A student after its training: perplexities on held-out dialogue and on prose.

    Seed 0 has one of a few steps, whose time says how many steps the others get.
    """

    layers: int
    labels: str
    seed: int
    steps: int
    cpu_s: float
    dialogue: float
    prose: float


class Comparison:
    """A teacher of the dialogues, and students that are cut out of it."""

    def __init__(self, model: Path, texts: Texts, folder: Path, progress: Progress) -> None:
        self._texts, self._folder, self._progress = texts, folder, progress
        self._windows = rows_of_length(texts.train, 128)[:_WINDOWS]
        self._teacher = load_model(model)
        self._losses: dict[str, Loss] = {
            "hard": lambda network, rows: next_token_loss(network, self._windows[rows])
        }
        self._train(self._teacher, "hard", "teacher", _TEACHER_STEPS, 1)
        cache = cache_teacher(
            lambda: self._teacher,
            self._windows,
            folder / "cache",
            progress,
            k=64,
            temperature=_TEMPERATURE,
            data=f"{texts.digest} {_TEACHER_STEPS}",
        )
        self._losses["hard and soft"] = distillation(self._windows, cache, _ALPHA, _TEMPERATURE)

    def run(self, found: Sequence[Learned]) -> Iterator[Learned]:
        """Train and judge every student that is not among those found before."""
        known = {(each.layers, each.labels, each.seed): each for each in found}
        for share, steps in STUDENTS.items():
            layers = self._layers(share)
            costs = {}
            for labels in self._losses:
                timed = known.get((len(layers), labels, 0))
                if timed is None:
                    timed = self._learn(layers, labels, _TIMED, 0)
                    yield timed
                costs[labels] = timed.cpu_s
            for seed in SEEDS:
                for labels, cost in costs.items():
                    if (len(layers), labels, seed) not in known:
                        equal = round(steps * costs["hard and soft"] / cost)
                        yield self._learn(layers, labels, equal, seed)

    def _layers(self, share: float) -> tuple[int, ...]:
        """Those that turn their input most, where most are kept; else evenly spaced ones."""
        depth = len(decoder_layers(self._teacher))
        count = round(share * depth)
        if share < 0.5:
            return tuple(evenly_spaced(count, depth))
        influence = block_influence(self._teacher, self._texts.calibration[:8], lambda: None)
        return tuple(sorted(sorted(range(depth), key=influence.__getitem__)[depth - count :]))

    def _learn(self, layers: tuple[int, ...], labels: str, steps: int, seed: int) -> Learned:
        student = from_layers(copy.deepcopy(self._teacher), layers)
        spent = self._train(student, labels, f"{len(layers)}-{labels}-{steps}", steps, seed)
        dialogue, prose = (
            perplexity(window_losses(student.bfloat16(), windows)).value
            for windows in (self._texts.heldout, self._texts.prose)
        )
        return Learned(len(layers), labels, seed, steps, spent, dialogue, prose)

    def _train(
        self, model: "PreTrainedModel", labels: str, name: str, steps: int, seed: int
    ) -> float:
        """Train; return the seconds of processor time."""
        options = TrainingOptions.model_validate({"steps": steps})
        started = time.process_time()
        train(
            model,
            len(self._windows),
            self._losses[labels],
            options,
            seed=seed,
            folder=self._folder / f"{name}-{seed}",
            progress=self._progress,
            data=self._texts.digest,
        )
        return time.process_time() - started


def page_of(found: Sequence[Learned]) -> str:
    """Render every student, and by how much soft labels win or lose in the mean over the seeds that
    have students of both.
    """
    found = [each for each in found if each.seed]
    head = ("layers", "labels", "seed", "steps", "processor s", "dialogue", "prose")
    lines = [
        (
            str(each.layers),
            each.labels,
            str(each.seed),
            str(each.steps),
            f"{each.cpu_s:.0f}",
            f"{each.dialogue:.2f}",
            f"{each.prose:.2f}",
        )
        for each in found
    ]
    sentences = [_verdict(found, layers) for layers in sorted({each.layers for each in found})]
    return f"# Students\n\n{table(head, lines)}\n\n" + "\n".join(sentences) + "\n"


def _verdict(found: Sequence[Learned], layers: int) -> str:
    students = [each for each in found if each.layers == layers]
    seeds = [{each.seed for each in students if each.labels == labels} for labels in LABELS]
    both = set.intersection(*seeds)
    if not both:
        return f"- {layers} layers: not compared yet."

    def mean(labels: str, domain: str) -> float:
        chosen = (each for each in students if each.labels == labels and each.seed in both)
        return fmean(getattr(each, domain) for each in chosen)

    ratios = (
        f"{mean('hard and soft', domain) / mean('hard', domain):.3f}× on {domain}"
        for domain in ("dialogue", "prose")
    )
    return (
        f"- {layers} layers, {len(both)} seeds: hard and soft labels over hard labels alone: "
        f"{', '.join(ratios)}."
    )

"""The one training loop: fine-tuning, distillation, QAT and recovery after pruning share it.

A step of training depends on the weights, the optimizer's state and the step's number alone: rows
are drawn and random numbers seeded by it. So a run that is killed and started again ends with the
same weights, bit for bit.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnmill.compression.distill import lora
from turnmill.compression.prune import l1
from turnmill.compression.prune.masks import KeptZeros
from turnmill.compression.step import Options, Progress
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: `loss(model, rows)`: the mean loss of the examples with these row numbers.
Loss = Callable[["PreTrainedModel", Tensor], Tensor]

#: Called after each step with its learning rate, to keep the weights within bounds.
Constraint = Callable[[float], None]

CHECKPOINT = "training.pt"
#: One of 135 M parameters is 1.3 GB.
CHECKPOINT_EVERY_S = 120.0

#: A model with a larger share of zeros counts as pruned.
PRUNED_FROM = 0.01


class TrainingOptions(Options):
    """How long and how fast to train."""

    #: Steps of the optimizer. A run bounded by steps can be repeated bit for bit.
    steps: int | None = Field(None, ge=1)
    #: Time for training, in minutes: whichever of the two is spent first ends the run.
    minutes: float | None = Field(None, gt=0)
    #: Windows a step.
    batch: int = Field(4, ge=1)
    #: Tokens a window; the windows of the recipe are cut to it.
    length: int = Field(128, ge=2)
    #: The highest rate: it rises over the warm-up and falls along a half cosine to zero.
    learning_rate: float = Field(1e-4, gt=0)
    #: Steps of the rise.
    warmup: int = Field(8, ge=1)
    weight_decay: float = Field(0.0, ge=0)
    #: The norm that gradients are cut to.
    clip: float = Field(1.0, gt=0)
    #: Train the token embedding (and a head tied to it) too.
    embeddings: bool = False
    #: Compute in bfloat16 where torch considers it safe; the weights stay in float32.
    bf16: bool = True
    #: Weights of linear layers that are exactly zero stay zero: pruned models stay pruned.
    keep_zeros: bool = True
    #: Strength of an L1 penalty on the linear layers, which drives weights to exactly zero.
    l1: float = Field(0.0, ge=0)
    #: Train adapters of this rank in place of the weights.
    lora: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _is_bounded(self) -> "TrainingOptions":
        if self.steps is None and self.minutes is None:
            raise ValueError("give steps, minutes or both: nothing else ends the training")
        if self.lora and self.l1:
            raise ValueError("an L1 penalty needs the weights themselves: leave out lora or l1")
        return self


@dataclass
class Trained:
    """What a run did, for the report; `vars` of it is JSON."""

    steps: int
    seconds: float
    first_loss: float
    last_loss: float


def train(
    model: "PreTrainedModel",
    rows: int,
    loss: Loss,
    options: TrainingOptions,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    data: str = "",
) -> Trained:
    """Minimise the mean loss over the examples 0 … rows - 1 with AdamW; report what was done.

    The model is trained in place and keeps its dtype; training itself runs in float32.

    Args:
        loss: called as `loss(model, rows)` with the row numbers of one batch, int64 `[batch]`.
        folder: where the checkpoint goes; a run that was killed resumes from it.
        data: names what the rows hold, so that a checkpoint of other data is not resumed.

    Raises:
        InvalidInput: the loss is no longer finite, or adapters would undo the pruning.
    """
    dtype = model.dtype
    model.float()
    folder.mkdir(parents=True, exist_ok=True)
    with _trainable(model, options, seed) as network:
        run = _Run(network, loss, _constraints(model, options), options, seed, rows)
        run.identity = f"{options.model_dump_json()} {seed} {rows} {data}"
        run.resume(folder / CHECKPOINT)
        run.finish(folder / CHECKPOINT, progress)
    model.to(dtype)
    return run.report()


class _Run:
    """A run of training: its weights, its optimizer and how far it has come."""

    def __init__(
        self,
        network: "PreTrainedModel",
        loss: Loss,
        constraints: list[Constraint],
        options: TrainingOptions,
        seed: int,
        rows: int,
    ) -> None:
        self._network, self._loss, self._constraints = network, loss, constraints
        self._options, self._seed, self._rows = options, seed, rows
        self._weights = [each for each in network.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        #: What a checkpoint must have been made for: options, seed and data.
        self.identity = ""
        self._step = 0
        self._seconds = 0.0
        self._losses: list[float] = []

    @property
    def fraction(self) -> float:
        """The share of the budget that is spent, 0 … 1."""
        steps, minutes = self._options.steps, self._options.minutes
        of_steps = self._step / steps if steps else 0.0
        of_time = self._seconds / (60 * minutes) if minutes else 0.0
        return min(1.0, max(of_steps, of_time))

    def finish(self, checkpoint: Path, progress: Progress) -> None:
        """Train until the budget is spent; write a checkpoint now and then, and at the end."""
        progress.start(1.0, "training")
        progress.advance(self.fraction)
        saved = time.monotonic()
        while self.fraction < 1:
            before, began = self.fraction, time.monotonic()
            self._losses.append(self._train_one_step())
            self._step += 1
            self._seconds += time.monotonic() - began
            progress.advance(self.fraction - before)
            if self.fraction == 1 or time.monotonic() - saved >= CHECKPOINT_EVERY_S:
                self._save(checkpoint)
                saved = time.monotonic()

    def _train_one_step(self) -> float:
        rate = learning_rate(self._step, self.fraction, self._options)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        rows = picked_rows(self._step, self._rows, self._options.batch, self._seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1_000_003 + self._step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._options.bf16):
                loss = self._loss(self._network, rows)
            loss.backward()
        value = float(loss.item())
        if not math.isfinite(value):
            raise InvalidInput(
                f"Training diverged: the loss of step {self._step + 1} is not finite. Use a lower "
                f"learning_rate than {self._options.learning_rate:g}.",
                param="learning_rate",
            )
        torch.nn.utils.clip_grad_norm_(self._weights, self._options.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        for constrain in self._constraints:
            constrain(rate)
        return value

    def _save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "weights": [each.detach() for each in self._weights],
            # A finished run is never trained further: its weights are enough.
            "optimizer": self._optimizer.state_dict() if self.fraction < 1 else None,
            "counts": (self._step, self._seconds, self._losses),
        }
        aside = path.with_suffix(".partial")
        torch.save(state, aside)
        aside.replace(path)

    def resume(self, path: Path) -> None:
        """Restore the checkpoint, if there is one and this very run wrote it."""
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            return
        with torch.no_grad():
            for weight, saved in zip(self._weights, state["weights"], strict=True):
                weight.copy_(saved)
        if state["optimizer"] is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._seconds, self._losses = state["counts"]

    def report(self) -> Trained:
        """Say what was done, with the mean loss of the first and of the last tenth of the steps."""
        tenth = max(1, len(self._losses) // 10)
        return Trained(
            self._step,
            round(self._seconds, 2),
            statistics.fmean(self._losses[:tenth]),
            statistics.fmean(self._losses[-tenth:]),
        )


def learning_rate(step: int, fraction: float, options: TrainingOptions) -> float:
    """Return the rate of a step (from 0), after this fraction of the budget."""
    rise = min(1.0, (step + 1) / options.warmup)
    return options.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def picked_rows(step: int, rows: int, batch: int, seed: int) -> Tensor:
    """Return the row numbers of a step: every row once an epoch, each epoch in another order."""
    numbers = range(step * batch, (step + 1) * batch)
    return torch.stack([_order(seed, each // rows, rows)[each % rows] for each in numbers])


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 7_919 + epoch))


@contextmanager
def _trainable(
    model: "PreTrainedModel", options: TrainingOptions, seed: int
) -> "Iterator[PreTrainedModel]":
    """Yield the network to train: the model, or the model with adapters, merged afterwards."""
    network = model
    if options.lora:
        if options.keep_zeros and KeptZeros(model).share > PRUNED_FROM:
            raise InvalidInput(
                "This model is pruned, and merging adapters would fill its zeros. Train the "
                "weights themselves (leave out lora), or give up the zeros (keep_zeros = false).",
                param="lora",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = lora.attach(model, options.lora)
    elif not options.embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    network.train()
    try:
        yield network
    finally:
        if options.lora:
            lora.merge(network)
        model.requires_grad_(True)
        model.eval()


def _constraints(model: "PreTrainedModel", options: TrainingOptions) -> list[Constraint]:
    found: list[Constraint] = []
    if options.l1:
        found.append(lambda rate: l1.shrink(model, options.l1 * rate))
    if options.keep_zeros and not options.lora:
        found.append(KeptZeros(model).restore)
    return found

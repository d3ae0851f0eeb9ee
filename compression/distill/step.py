"""The step `distill`: a student learns from its teacher's probabilities and from the text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from turnmill.compression.calibration import skeleton_of
from turnmill.compression.checkpoint import load_config
from turnmill.compression.distill import students
from turnmill.compression.distill.cache import TeacherCache, bytes_per_window, cache_teacher
from turnmill.compression.distill.finetune import next_token_loss, rows_of_length
from turnmill.compression.distill.losses import hard_and_soft_loss
from turnmill.compression.distill.training import Loss, TrainingOptions, train
from turnmill.compression.distill.written import written_windows
from turnmill.compression.prune.narrow import check_mlp
from turnmill.compression.prune.structured import changed, config_of_layers
from turnmill.compression.step import Progress, State
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class DistillOptions(TrainingOptions):
    """The student, its teacher and the mixture of losses. Without a student, the model itself
    learns: recovery after pruning, quantization or dropped layers.
    """

    #: Cut a student out of the model: how many layers (evenly spaced), or which.
    layers: int | tuple[int, ...] | None = None
    #: Keep this share of the MLP channels, those that matter most; on top of `layers`, if given.
    width: float | None = Field(None, gt=0, lt=1)
    #: The folder of a smaller checkpoint with the same tokenizer.
    student: Path | None = None
    #: The teacher: the recipe's base model, or the model as this step was given it.
    teacher: Literal["base", "current"] = "base"
    #: The weight of the hard labels; the soft ones weigh 1 - alpha.
    alpha: float = Field(0.5, ge=0, le=1)
    #: Softens both distributions; above 1 the unlikely tokens count for more.
    temperature: float = Field(2.0, gt=0)
    #: How many of the teacher's probabilities are kept per position.
    top_k: int = Field(64, ge=1)
    #: The most training windows to use. More are each read fewer times, and cost more of the
    #: teacher's time, which no budget of steps or minutes counts.
    windows: int = Field(1024, ge=1)
    #: So many windows more, which the teacher writes itself: they keep the student general.
    generated: int = Field(0, ge=0)
    #: What the cached probabilities may take on disk, in megabytes: fewer windows are used then.
    cache_mb: int = Field(1024, ge=1)

    def check(self, config: "PretrainedConfig") -> "PretrainedConfig":
        if self.student is not None:
            return load_config(self.student)
        if self.layers is not None:
            teacher = skeleton_of(config)
            config = config_of_layers(teacher, students.places(teacher, self.layers))
        if self.width is not None:
            channels = check_mlp(skeleton_of(config), 1 - self.width)
            config = changed(config, intermediate_size=channels)
        return config

    @property
    def has_student(self) -> bool:
        """Whether another model than the recipe's own is trained."""
        return any(each is not None for each in (self.layers, self.width, self.student))

    @model_validator(mode="after")
    def _has_one_student(self) -> "DistillOptions":
        if self.student is not None and (self.layers is not None or self.width is not None):
            raise ValueError("give layers and width, or student, not both")
        return self


class Distill:
    """Minimise alpha · cross-entropy + (1 - alpha) · T² · KL(teacher ‖ student)."""

    options = DistillOptions

    def __call__(
        self, state: State, options: DistillOptions, progress: Progress
    ) -> Mapping[str, object]:
        before = state.model
        state.model = _student(state, options, progress)
        load = state.teacher if options.teacher == "base" else lambda: before
        return learn(state, load, options, progress, state.folder)


def learn(
    state: State,
    load_teacher: "Callable[[], PreTrainedModel]",
    options: DistillOptions,
    progress: Progress,
    folder: Path,
) -> Mapping[str, object]:
    """Train the state's model on what the teacher says of the training windows.

    The teacher's probabilities are kept in the step's folder, the checkpoint in `folder`: a step
    that trains several times asks the teacher once.
    """
    windows = _affordable(rows_of_length(state.texts.train, options.length), options)
    if options.generated:
        written = written_windows(
            load_teacher,
            options.generated,
            windows.shape[1],
            vocabulary=min(len(state.tokenizer), state.model.config.vocab_size),
            seed=state.seed,
            path=state.folder / "written.pt",
            progress=progress,
        )
        windows = torch.cat([windows, written])
    data = f"{options.teacher} {state.texts.digest} {len(windows)} {options.generated}"
    if options.alpha == 1:
        loss: Loss = lambda model, rows: next_token_loss(model, windows[rows])  # noqa: E731
    else:
        teacher = cache_teacher(
            load_teacher,
            windows,
            state.folder / "teacher",
            progress,
            k=min(options.top_k, state.model.config.vocab_size),
            temperature=options.temperature,
            data=data,
            vocabulary=state.model.config.vocab_size,
        )
        loss = distillation(windows, teacher, options.alpha, options.temperature)
    done = train(
        state.model,
        len(windows),
        loss,
        options,
        seed=state.seed,
        folder=folder,
        progress=progress,
        data=data,
    )
    state.become_dense()
    return vars(done) | {"windows": len(windows)}


def distillation(windows: Tensor, teacher: TeacherCache, alpha: float, temperature: float) -> Loss:
    """Return the loss of a student of language: alpha · hard + (1 - alpha) · soft."""

    def loss(model: "PreTrainedModel", rows: Tensor) -> Tensor:
        batch = windows[rows]
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        return hard_and_soft_loss(logits, teacher[rows], batch[:, 1:], alpha, temperature)

    return loss


def _student(state: State, options: DistillOptions, progress: Progress) -> "PreTrainedModel":
    if options.student is not None:
        return students.from_checkpoint(options.student, state.tokenizer)
    student = state.model
    if options.layers is not None:
        student = students.from_layers(student, options.layers)
    if options.width is not None:
        windows = state.texts.calibration
        student = students.narrower(student, options.width, windows, progress)
    return student


def _affordable(windows: Tensor, options: DistillOptions) -> Tensor:
    """Return the windows that the step has a use for and the cache may hold."""
    size = bytes_per_window(windows.shape[1], options.top_k)
    count = options.cache_mb * 1_000_000 // size
    if not count:
        raise InvalidInput(
            f"A cache of {options.cache_mb} MB cannot hold one window of {size} bytes: raise "
            "cache_mb, or lower top_k or length.",
            param="cache_mb",
        )
    if options.steps is not None:
        count = min(count, options.steps * options.batch)
    return windows[: min(count, options.windows)]

"""The step `on-policy`: the student writes, and the teacher judges every token that it wrote.

A student that only ever reads others' text is lost once its own text differs. Here it continues the
beginnings of training windows, and its distribution at each token of its own is drawn to the
teacher's (Agarwal et al., "On-Policy Distillation of Language Models",
https://arxiv.org/abs/2306.13649). The trainer is trl's:
https://huggingface.co/docs/trl/distillation_trainer
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING

from pydantic import Field

from turnmill.compression.distill.finetune import rows_of_length
from turnmill.compression.prune.masks import KeptZeros
from turnmill.compression.step import Options, Progress, State

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from trl import DistillationTrainer


class OnPolicyOptions(Options):
    """How long the student writes, and how it is compared with the teacher, the base model."""

    #: Steps of the optimizer. A run that was killed begins the step again, with the same result.
    steps: int = Field(ge=1)
    #: Replies a step.
    batch: int = Field(4, ge=1)
    #: Tokens of a training window that the student continues, and those that it writes.
    prompt: int = Field(64, ge=1)
    reply: int = Field(64, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    #: Of sampling and of both distributions.
    temperature: float = Field(1.0, gt=0)
    #: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher), between them the generalized
    #: Jensen-Shannon divergence.
    beta: float = Field(0.5, ge=0, le=1)


class OnPolicy:
    options = OnPolicyOptions

    def __call__(
        self, state: State, options: OnPolicyOptions, progress: Progress
    ) -> Mapping[str, object]:
        state.model.float()
        with _quiet():
            trainer = _trainer(state, options)
            trainer.add_callback(_watch(KeptZeros(state.model), progress))
            progress.start(options.steps, "the student writes, the teacher judges")
            done = trainer.train()
        state.model.eval()
        state.become_dense()
        return {"steps": done.global_step, "loss": round(done.training_loss, 4)}


def _trainer(state: State, options: OnPolicyOptions) -> "DistillationTrainer":
    """Return trl's trainer, which neither saves, logs nor reports."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DistillationConfig, DistillationTrainer

    tokenizer = copy(state.tokenizer)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    beginnings = rows_of_length(state.texts.train, options.prompt + options.reply)
    prompts = [{"prompt": tokenizer.decode(each[: options.prompt])} for each in beginnings]
    config = DistillationConfig(
        output_dir=str(state.folder / "trl"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=options.learning_rate,
        max_completion_length=options.reply,
        temperature=options.temperature,
        beta=options.beta,
        seed=state.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        state.model,
        state.teacher(),
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _watch(zeros: KeptZeros, progress: Progress) -> "TrainerCallback":
    """After each step, set pruned weights back to zero and report progress."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            zeros.restore()
            progress.advance()

    return Watch()


@contextmanager
def _quiet() -> Iterator[None]:
    """trl 1.16 still passes names that transformers 5.23 has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield

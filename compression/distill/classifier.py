"""Distil a classifier of texts: teacher and student are `AutoModelForSequenceClassification`.

The worked example is the intent of a support ticket: a language model with a classification head
learns it from labelled tickets, then a student of a few of its layers learns from both the labels
and the teacher's opinion of every label.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from turnmill.compression.distill.losses import combined_loss, hard_loss
from turnmill.compression.distill.students import from_layers
from turnmill.compression.distill.training import CHECKPOINT, Loss, TrainingOptions, train
from turnmill.compression.step import Progress
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Made-up support tickets of eight intents.
SAMPLE = Path(__file__).parents[1] / "recipes" / "intents.jsonl"

#: Of the first byte of a group's digest: below it, the group is held out (a fifth of all).
_HELDOUT_BELOW = 51


class ClassifierOptions(TrainingOptions):
    """How the teacher and the student are trained; both take the same budget."""

    batch: int = Field(16, ge=1)
    length: int = Field(64, ge=2)
    #: The student's layers, evenly spaced among the teacher's.
    layers: int = Field(2, ge=1)
    #: The weight of the labels; the teacher's opinion weighs 1 - alpha.
    alpha: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(2.0, gt=0)
    #: How both opinions are compared: KL(teacher ‖ student), KL(student ‖ teacher), or the mean of
    #: both against their mixture.
    divergence: Literal["forward", "reverse", "jensen-shannon"] = "forward"


@dataclass(frozen=True)
class Example:
    text: str
    label: str
    #: Examples that say the same in other words: all of them are trained, or all held out.
    group: str


@dataclass(frozen=True)
class _Encoded:
    """Texts as token ids `[n, length]` with their mask, and labels `[n]` as numbers."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def logits(self, model: "PreTrainedModel", rows: Tensor) -> Tensor:
        found: Tensor = model(input_ids=self.ids[rows], attention_mask=self.mask[rows]).logits
        return found.float()


def read_examples(path: Path) -> list[Example]:
    """Read a JSONL file of objects with `text`, `label` and perhaps a `group` of paraphrases.

    Raises:
        InvalidInput: it cannot be read, or a line is no such object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} cannot be read as UTF-8 text: {error}.", param="data"
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, label = row["text"].strip(), row["label"].strip()
            found.append(Example(text, label, row.get("group", text)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(
                f'{path}, line {number}: expected {{"text": "…", "label": "…"}}.', param="data"
            ) from error
    return found


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Return training and held-out examples: a fifth of the groups, by their digest.

    Raises:
        InvalidInput: a part is empty, or a label is held out without being trained.
    """

    def is_held_out(example: Example) -> bool:
        return hashlib.sha256(example.group.encode()).digest()[0] < _HELDOUT_BELOW

    parts: tuple[list[Example], list[Example]] = ([], [])
    for each in dict.fromkeys(examples):
        parts[is_held_out(each)].append(each)
    unknown = {each.label for each in parts[1]} - {each.label for each in parts[0]}
    if unknown or not all(parts):
        raise InvalidInput(
            f"{len(examples)} examples are too few: a fifth is held out, and every label needs "
            "some that are not. Give at least ten of each label.",
            param="data",
        )
    return parts


def distil_classifier(
    base: Path,
    examples: Sequence[Example],
    folder: Path,
    options: ClassifierOptions,
    *,
    seed: int,
    progress: Progress,
) -> Mapping[str, object]:
    """Train a teacher on the labels, distil a student from it, and save the student to `folder`.

    A checkpoint that is a classifier of these labels already is used as the teacher as it is.

    Returns:
        Sizes, and the accuracies of both on held-out examples, as JSON values.

    Raises:
        InvalidInput: too few examples, or the model cannot be cut into layers.
    """
    from transformers import AutoTokenizer

    training, held_out = split(examples)
    labels = sorted({each.label for each in training})
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    known, unknown = (_encode(part, labels, tokenizer, options) for part in (training, held_out))
    teacher, is_trained = _load_teacher(base, labels, tokenizer, seed)

    def run(model: "PreTrainedModel", loss: Loss, part: str) -> None:
        train(
            model,
            len(training),
            loss,
            options,
            seed=seed,
            folder=folder / part,
            progress=progress,
            data=hashlib.sha256(repr(training).encode()).hexdigest(),
        )

    if not is_trained:
        run(teacher, labels_loss(known), "teacher")
    student = from_layers(teacher, options.layers)
    run(student, opinion_loss(known, _opinions(teacher, known), options), "student")
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = {
        "labels": labels,
        "trained_on": len(training),
        "held_out": len(held_out),
        "teacher_accuracy": accuracy(teacher, unknown),
        "student_accuracy": accuracy(student, unknown),
        "teacher_parameters": teacher.num_parameters(),
        "student_parameters": student.num_parameters(),
    }
    # Last: a run that is killed before it has told its figures resumes here.
    for part in ("teacher", "student"):
        _remove_checkpoint(folder / part)
    return told


def _remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training that is done, larger than the model that it trained."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    with suppress(OSError):  # It holds something else, or was never made.
        folder.rmdir()


def labels_loss(examples: _Encoded) -> Loss:
    """Return the loss of the labels alone."""
    return lambda model, rows: hard_loss(examples.logits(model, rows), examples.labels[rows])


def opinion_loss(examples: _Encoded, opinions: Tensor, options: ClassifierOptions) -> Loss:
    """Return the loss of the labels and of the teacher's logits `[n, classes]`."""

    def loss(model: "PreTrainedModel", rows: Tensor) -> Tensor:
        return combined_loss(
            examples.logits(model, rows),
            opinions[rows],
            examples.labels[rows],
            options.alpha,
            options.temperature,
            options.divergence,
        )

    return loss


def accuracy(model: "PreTrainedModel", examples: _Encoded) -> float:
    """Return the share of examples whose likeliest label is the right one."""
    right = _opinions(model, examples).argmax(-1) == examples.labels
    return round(float(right.float().mean()), 4)


def _opinions(model: "PreTrainedModel", examples: _Encoded) -> Tensor:
    batches = torch.arange(len(examples.labels)).split(32)
    with torch.no_grad():
        return torch.cat([examples.logits(model, rows) for rows in batches])


def _encode(
    examples: Sequence[Example],
    labels: list[str],
    tokenizer: "PreTrainedTokenizerBase",
    options: ClassifierOptions,
) -> _Encoded:
    encoded = tokenizer(
        [each.text for each in examples],
        padding=True,
        truncation=True,
        max_length=options.length,
        return_tensors="pt",
    )
    numbers = torch.tensor([labels.index(each.label) for each in examples])
    return _Encoded(encoded["input_ids"], encoded["attention_mask"], numbers)


def _load_teacher(
    base: Path, labels: list[str], tokenizer: "PreTrainedTokenizerBase", seed: int
) -> "tuple[PreTrainedModel, bool]":
    """Return the classifier, and whether the checkpoint already knows these labels."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(base)
    is_trained = sorted(config.label2id) == labels and any(
        "SequenceClassification" in each for each in config.architectures or ()
    )
    if not is_trained:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        # The head of a language model's checkpoint is new.
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            base, config=config, dtype=torch.float32
        )
    return model.eval(), is_trained

"""An intent classifier for tickets, distilled from its teacher by hard and soft labels."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from turnmill.compression.distill import classifier
from turnmill.compression.distill.classifier import (
    SAMPLE,
    ClassifierOptions,
    Example,
    distil_classifier,
    read_examples,
    split,
)
from turnmill.compression.distill.training import CHECKPOINT
from turnmill.compression.step import Silent
from turnmill.schemas.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = {"refund": "my money please", "delivery": "parcel is late", "account": "cannot log in"}
EXAMPLES = [
    Example(f"{words} {number}", label, f"{label}-{number}")
    for label, words in WORDS.items()
    for number in range(20)
]
OPTIONS = ClassifierOptions(
    steps=40, layers=1, length=32, learning_rate=3e-3, batch=8, embeddings=True
)


@pytest.fixture
def base(tiny_llama_maker: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny_llama_maker(layers=2).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_language_model_becomes_the_teacher_of_a_smaller_classifier(
    base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "student"
    told = distil_classifier(base, EXAMPLES, folder, OPTIONS, seed=1, progress=Silent())
    assert told["labels"] == sorted(WORDS)
    assert told["student_accuracy"] > 0.6
    assert told["student_parameters"] < told["teacher_parameters"]
    json.dumps(told)
    assert not [path for path in folder.rglob("*") if path.is_dir() or path.suffix == ".pt"]
    student = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = student(**tokenizer("parcel is late 99", return_tensors="pt")).logits
    assert student.config.id2label[int(logits.argmax())] == "delivery"


def test_a_run_that_ends_before_its_figures_keeps_its_trainings(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "student"

    def stopped(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(classifier, "accuracy", stopped)
        with pytest.raises(KeyboardInterrupt):
            distil_classifier(base, EXAMPLES, folder, OPTIONS, seed=1, progress=Silent())
    done = [torch.load(folder / part / CHECKPOINT) for part in ("teacher", "student")]
    assert [each["counts"][0] for each in done] == [OPTIONS.steps] * 2

    told = distil_classifier(base, EXAMPLES, folder, OPTIONS, seed=1, progress=Silent())

    assert told["student_accuracy"] > 0.6
    assert not list(folder.rglob(CHECKPOINT))


def test_a_checkpoint_that_knows_the_labels_is_not_trained_again(
    base: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    distil_classifier(base, EXAMPLES, first, OPTIONS, seed=1, progress=Silent())
    told = distil_classifier(first, EXAMPLES, second, OPTIONS, seed=1, progress=Silent())
    assert not (second / "teacher").exists()
    assert told["teacher_accuracy"] > 0.6


def test_the_sample_of_tickets_has_every_label_in_both_parts() -> None:
    training, held_out = split(read_examples(SAMPLE))
    assert len({each.label for each in training}) == 8
    assert len({each.label for each in held_out}) >= 6
    assert not {each.group for each in training} & {each.group for each in held_out}


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(InvalidInput, match="ten of each label"):
        split(EXAMPLES[:1])


@pytest.mark.parametrize("line", ['{"text": "a"}', "[]", "{", '{"text": 1, "label": "x"}'])
def test_a_line_that_is_no_example_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_text(f'{{"text": "a", "label": "b"}}\n\n{line}\n')
    with pytest.raises(InvalidInput, match=r"tickets\.jsonl, line 3"):
        read_examples(path)

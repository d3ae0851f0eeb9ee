"""Studies: leases, overlap, repeats, undo, agreement, import and export."""

import csv
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.integration.evaluation.conftest import Desk
from turnmill.producer.cli.app import app
from turnmill.producer.studies.candidates import stored_candidates
from turnmill.producer.studies.creation import Plan, create_study
from turnmill.producer.studies.lookup import close_study, count_study, find_study
from turnmill.producer.studies.model import Candidate, Item, Kind, Rater, Study
from turnmill.producer.studies.raters import ensure_rater, find_rater, invite
from turnmill.producer.studies.rating import next_item, standing, submit, undo
from turnmill.producer.studies.results import agreement_of, findings_of, read_ratings
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.errors import Conflict, InvalidInput, NotFound
from turnmill.schemas.ids import first_id, time_of
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.turns import Message, Role

GOOD = {"fluency": 5, "coherence": 4, "informativeness": 3}


@pytest.fixture
def database(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path_factory.mktemp("data")))
    monkeypatch.setenv("COLUMNS", "200")
    database = Database(load_settings().database)
    yield database
    database.close()


def make_study(
    database: Database, count: int = 6, kind: Kind = "likert", plan: Plan | None = None
) -> Study:
    tenant_id = ensure_defaults(database, load_settings())
    prompt = (Message(role=Role.USER, content="Where is it?"),)
    candidates = [
        Candidate(prompt, f"a{n}", f"b{n}", {"bot": "old", "bot_b": "new"}) for n in range(count)
    ]
    chosen = plan or Plan(overlap=1, raters=2, repeats=0)
    return create_study(database, tenant_id, "study", kind, candidates, (), chosen)


def rater_of(database: Database, study: Study, name: str) -> Rater:
    with database.cursor() as cursor:
        return Rater(ensure_rater(cursor, study.study_id, name), name, study)


def shown(database: Database, rater: Rater) -> Item:
    item = next_item(database, rater)
    assert item is not None
    return item


def rate_all(database: Database, rater: Rater, values: dict[str, int]) -> list[str]:
    seen = []
    while (item := next_item(database, rater)) is not None:
        submit(database, rater, item.item_id, values)
        seen.append(item.left)
    return seen


def turnmill(*words: str, typed: str = "") -> str:
    done = CliRunner().invoke(app, ["studies", *words], input=typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_an_item_stays_the_same_until_it_is_rated(database: Database) -> None:
    study = make_study(database)
    ada = rater_of(database, study, "ada")

    first = shown(database, ada)
    assert shown(database, ada) == first
    submit(database, ada, first.item_id, GOOD)

    assert shown(database, ada) != first
    assert (standing(database, ada).done, standing(database, ada).total) == (1, 6)


def test_no_item_is_rated_by_more_people_than_it_needs(database: Database) -> None:
    study = make_study(database, 8, plan=Plan(overlap=0.5, raters=2, repeats=0))
    raters = [rater_of(database, study, name) for name in "abcd"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rater: rate_all(database, rater, GOOD), raters))

    counts = count_study(database, study)
    assert counts.done == counts.wanted == 12


def test_an_item_whose_lease_ends_goes_to_another_rater(database: Database) -> None:
    study = make_study(database, 1, plan=Plan(overlap=0, repeats=0))
    ada, bo = (rater_of(database, study, name) for name in ("ada", "bo"))
    held = shown(database, ada)
    assert next_item(database, bo) is None

    database.run("UPDATE study_assignments SET leased_until = clock_timestamp()")
    assert shown(database, bo) == held

    with pytest.raises(Conflict):
        submit(database, ada, held.item_id, GOOD)
    assert next_item(database, ada) is None
    submit(database, bo, held.item_id, GOOD)


def test_a_lease_that_ended_is_still_good_if_nobody_took_the_place(database: Database) -> None:
    study = make_study(database, 1, plan=Plan(overlap=0, repeats=0))
    ada = rater_of(database, study, "ada")
    held = shown(database, ada)
    database.run("UPDATE study_assignments SET leased_until = clock_timestamp()")

    submit(database, ada, held.item_id, GOOD)

    assert count_study(database, study).done == 1


def test_undo_shows_the_last_item_again_and_forgets_its_rating(database: Database) -> None:
    study = make_study(database)
    ada = rater_of(database, study, "ada")
    assert not undo(database, ada)
    first = shown(database, ada)
    submit(database, ada, first.item_id, GOOD)
    shown(database, ada)

    assert undo(database, ada)

    assert shown(database, ada) == first
    assert read_ratings(database, study) == []
    assert standing(database, ada).done == 0


def test_repeats_go_to_those_who_rated_the_item_and_measure_how_steady_they_are(
    database: Database,
) -> None:
    study = make_study(database, 10, plan=Plan(overlap=0, repeats=0.3))
    ada, bo = (rater_of(database, study, name) for name in ("ada", "bo"))

    seen = rate_all(database, ada, GOOD)

    assert next_item(database, bo) is None
    assert len(seen) == 13
    assert len(set(seen)) == 10
    assert len(agreement_of(study, read_ratings(database, study))) == 3
    for each in agreement_of(study, read_ratings(database, study)):
        assert (each.repeats, each.same_again, each.items) == (3, 1.0, 0)


@pytest.mark.parametrize(
    "values", [{}, {**GOOD, "fluency": 6}, {**GOOD, "charm": 3}, {"fluency": 1}]
)
def test_wrong_ratings_are_refused(database: Database, values: dict[str, int]) -> None:
    study = make_study(database)
    ada = rater_of(database, study, "ada")
    item = shown(database, ada)
    with pytest.raises(InvalidInput):
        submit(database, ada, item.item_id, values)
    assert read_ratings(database, study) == []


def test_a_closed_study_shows_and_takes_nothing(database: Database) -> None:
    study = make_study(database)
    ada = rater_of(database, study, "ada")
    item = shown(database, ada)
    close_study(database, study)

    assert next_item(database, ada) is None
    assert not undo(database, ada)
    with pytest.raises(Conflict):
        submit(database, ada, item.item_id, GOOD)


def test_a_pair_is_judged_by_who_wrote_it_wherever_it_was_shown(database: Database) -> None:
    study = make_study(database, 30, "pairwise", Plan(overlap=1, raters=2, repeats=0))
    for name in ("ada", "bo"):
        rater = rater_of(database, study, name)
        while (item := next_item(database, rater)) is not None:
            submit(database, rater, item.item_id, {"preference": -1 if item.left[0] == "b" else 1})

    ratings = read_ratings(database, study)
    (finding,) = findings_of(study, ratings)

    assert (finding.source, finding.items, finding.figure.value) == ("new over old", 30, 1)
    (agreed,) = agreement_of(study, ratings)
    assert agreed.alpha is None


def test_a_link_works_until_it_expires_or_is_replaced(database: Database) -> None:
    study = make_study(database)
    first = invite(database, study, "ada", 7)
    assert find_rater(database, first).name == "ada"
    second = invite(database, study, "ada", 7)
    for wrong in (first, "", "x" * 43, second[:-1]):
        with pytest.raises(NotFound):
            find_rater(database, wrong)

    database.run("UPDATE study_raters SET expires_at = clock_timestamp()")
    with pytest.raises(NotFound):
        find_rater(database, second)
    stored = database.run("SELECT digest FROM study_raters")[0].digest
    assert second.encode() not in bytes(stored)


def test_a_study_goes_from_a_file_to_its_agreement_by_commands(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps(
                {"prompt": f"问题 {n}", "a": "是", "b": "否", "bot": "old-bot", "bot_b": "new-bot"}
            )
            + "\n"
            for n in range(3)
        )
    )
    words = ("--from", str(pairs), "--kind", "pairwise", "--overlap", "1", "--repeats", "0")
    assert "3 items" in turnmill("create", "night", *words)
    said = turnmill("rate", "night", "ada", "--lang", "zh", typed="l\nwhat\nr\nu\nr\nt\n")
    assert "左边的回复" in said
    assert "谢谢" in said
    assert "old-bot" not in said
    assert "new-bot" not in said
    turnmill("rate", "night", "bo", typed="l\nq\n")

    assert "night" in turnmill("list")
    assert "ada" in turnmill("show", "night")
    assert "new-bot over old-bot" in turnmill("agreement", "night")
    assert turnmill("invite", "night", "cy").startswith("http://localhost:8000/rate/")
    assert "Closed" in turnmill("close", "night")
    assert "Deleted" in turnmill("delete", "night", "--yes")
    assert database.run("SELECT * FROM study_ratings") == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("kind", ["likert", "pairwise"])
def test_what_is_exported_can_be_imported(
    database: Database, tmp_path: Path, suffix: str, kind: Kind
) -> None:
    study = make_study(database, 6, kind)
    values = GOOD if kind == "likert" else {"preference": -1}
    rate_all(database, rater_of(database, study, "@ada"), values)
    before = read_ratings(database, study)
    file = tmp_path / f"ratings{suffix}"
    turnmill("export", "study", str(file))
    database.run("DELETE FROM study_raters")
    assert read_ratings(database, study) == []

    turnmill("import", "study", str(file))
    turnmill("import", "study", str(file))

    after = read_ratings(database, study)
    assert [(r.item_id, r.rater, r.dimension, r.value) for r in after] == [
        (r.item_id, r.rater, r.dimension, r.value) for r in before
    ]


def test_an_import_is_all_or_nothing(database: Database, tmp_path: Path) -> None:
    study = make_study(database)
    ada = rater_of(database, study, "ada")
    item = shown(database, ada)
    head = ["item_id", "rater", "dimension", "value"]
    good: list[Any] = [[item.item_id.hex, "bo", name, 3] for name in GOOD]
    for bad in (
        [item.item_id.hex, "cy", "fluency", 9],
        ["f" * 32, "cy", "fluency", 1],
        [item.item_id.hex, "", "fluency", 1],
    ):
        text = io.StringIO()
        csv.writer(text).writerows([head, *good, bad])
        file = tmp_path / "ratings.csv"
        file.write_text(text.getvalue())
        done = CliRunner().invoke(app, ["studies", "import", "study", str(file)])
        assert isinstance(done.exception, InvalidInput)
        assert read_ratings(database, study) == []


def import_of(folder: Path, item: Item, raters: list[str], **cells: str) -> Path:
    file = folder / "ratings.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["item_id", "rater", "dimension", "value", *cells])
        for rater in raters:
            writer.writerows(
                [item.item_id.hex, rater, name, f"{value}.0", *cells.values()]
                for name, value in GOOD.items()
            )
    return file


def test_an_import_replaces_what_it_says_and_keeps_the_rest(
    database: Database, tmp_path: Path
) -> None:
    study = make_study(database, 1, plan=Plan(overlap=0, repeats=0))
    ada = rater_of(database, study, "ada")
    item = shown(database, ada)
    submit(database, ada, item.item_id, dict.fromkeys(GOOD, 1), "old")

    turnmill("import", "study", str(import_of(tmp_path, item, ["ada"])))
    after = read_ratings(database, study)
    assert {each.dimension: each.value for each in after} == GOOD
    assert {each.comment for each in after} == {"old"}

    cells = {"comment": "new", "seconds": "7.5"}
    turnmill("import", "study", str(import_of(tmp_path, item, ["ada"], **cells)))
    after = read_ratings(database, study)
    assert {(each.comment, each.seconds) for each in after} == {("new", 7.5)}


def test_more_ratings_than_are_wanted_are_kept_and_counted_once(
    database: Database, tmp_path: Path
) -> None:
    study = make_study(database, 3, plan=Plan(overlap=0, repeats=0))
    item = shown(database, rater_of(database, study, "ada"))
    turnmill("import", "study", str(import_of(tmp_path, item, ["bo", "cy", "di", "ed"])))
    counts = count_study(database, study)
    assert (counts.done, counts.wanted) == (1, 3)
    assert isinstance(counts.done, int)
    assert len(read_ratings(database, study)) == 4 * len(GOOD)
    assert "1 of 3 rated" in turnmill("show", "study")


@pytest.mark.parametrize(
    "bad", [{"value": "4.5"}, {"value": "nan"}, {"value": "1e400"}, {"seconds": "inf"},
            {"seconds": "-1"}, {"comment": "x" * 2001}, {"comment": "other"}],
)  # fmt: skip
def test_an_import_of_no_whole_number_or_a_second_comment_is_refused(
    database: Database, tmp_path: Path, bad: dict[str, str]
) -> None:
    study = make_study(database, 1, plan=Plan(overlap=0, repeats=0))
    item = shown(database, rater_of(database, study, "ada"))
    good = {"item_id": item.item_id.hex, "rater": "bo", "value": "4", "comment": "one"}
    rows = [{**good, "dimension": name} for name in GOOD]
    file = tmp_path / "ratings.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows[:2], {**rows[2], **bad}])))
    done = CliRunner().invoke(app, ["studies", "import", "study", str(file)])
    assert isinstance(done.exception, InvalidInput)
    assert "line 3" in str(done.exception)
    assert read_ratings(database, study) == []


def test_scores_have_the_shape_of_langfuse(database: Database, tmp_path: Path) -> None:
    study = make_study(database, 1, plan=Plan(overlap=0, repeats=0))
    rate_all(database, rater_of(database, study, "ada"), GOOD)
    file = tmp_path / "scores.jsonl"
    turnmill("export", "study", str(file), "--langfuse")

    rows = [json.loads(line) for line in file.read_text().splitlines()]

    assert {row["name"]: row["value"] for row in rows} == GOOD
    assert {row["dataType"] for row in rows} == {"NUMERIC"}


def test_stored_turns_are_shown_with_what_was_said_before(desk: Desk) -> None:
    turns = desk.ask("Hello", "Where is it?")
    since = time_of(first_id(time_of(turns[0])))

    drawn = stored_candidates(desk.database, desk.tenant_id, desk.bot, 10, since, seed=1)

    (last,) = [each for each in drawn if each.a == "Where is it?"]
    assert [message.text for message in last.prompt] == ["Hello", "Hello", "Where is it?"]
    study = create_study(desk.database, desk.tenant_id, "s", "likert", drawn)
    assert find_study(desk.database, desk.tenant_id, "s") == study

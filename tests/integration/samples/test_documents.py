"""The documents of the sample bots answer their questions, and no others."""

from typing import Any

import pytest

from tests.integration.pages.commands import run
from turnmill.producer.cli.context import System
from turnmill.producer.cli.samples.install import (
    Question,
    Sample,
    find_sample,
    install,
    list_samples,
)
from turnmill.producer.tenants import list_bots
from turnmill.schemas.store.knowledge.features import DEPTH
from turnmill.schemas.store.knowledge.gate import Zone, judge, read_gate, shown
from turnmill.schemas.store.knowledge.search import search

READING = [sample.name for sample in list_samples() if sample.documents]
#: Of the questions that a sample's documents answer, the share that must pass its gate.
MUST_PASS = 0.9


@pytest.fixture(params=READING)
def sample(request: pytest.FixtureRequest, system: System) -> Sample:
    found = find_sample(request.param)
    install(system, found)
    return found


def ask(system: System, sample: Sample, question: Question) -> tuple[Zone, list[str]]:
    """What the gate says, and the documents whose passages a turn would be shown."""
    place = (system.database, system.tenant_id, sample.name)
    found = search(*place, question.text, DEPTH)
    _, gate = read_gate(*place)
    assert gate is not None
    return judge(gate, question.text, found).zone, [each.uri for each in shown(found)]


def test_the_right_document_is_shown_and_the_gate_lets_nearly_all_of_them_pass(
    system: System, sample: Sample
) -> None:
    answered = [each for each in sample.questions() if each.source]
    results = [ask(system, sample, each) for each in answered]
    missed = [
        each.text
        for each, (_, uris) in zip(answered, results, strict=True)
        if each.source not in uris
    ]
    assert missed == []
    passed = sum(zone is Zone.KNOWN for zone, _ in results)
    assert passed >= MUST_PASS * len(answered)


def test_what_the_documents_do_not_hold_does_not_pass(system: System, sample: Sample) -> None:
    foreign = [each for each in sample.questions() if each.source is None]
    assert len(foreign) >= 3
    assert [each.text for each in foreign if ask(system, sample, each)[0] is Zone.KNOWN] == []


def test_samples_are_installed_by_a_command_as_often_as_one_likes(running: Any) -> None:
    folder = find_sample("tutor").folder
    listed = run("turnmill bots sample", running.variables, folder)
    assert [sample.name for sample in list_samples() if sample.title not in listed] == []
    for _ in range(2):
        said = run("turnmill bots sample tutor", running.variables, folder)
        assert 'turnmill ask "How do you divide by a fraction?" --bot tutor' in said
        assert "document.indexed" not in said
    (bot,) = (bot for bot in list_bots(running.database, running.tenant_id) if bot.name == "tutor")
    assert bot.policies.knowledge == "tutor"
    assert running.database.run("SELECT count(*) AS n FROM documents")[0].n == 4

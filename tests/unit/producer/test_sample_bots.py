"""The sample bots: each definition is right, and its questions name documents that it has."""

import re

import pytest

from turnmill.producer.cli.samples.install import Sample, find_sample, list_samples
from turnmill.schemas.channels.configuration import load_configuration
from turnmill.schemas.errors import NotFound

EACH = pytest.mark.parametrize("sample", list_samples(), ids=lambda sample: sample.name)


def test_there_are_the_four_uses() -> None:
    names = [sample.name for sample in list_samples()]
    assert names == ["assistant", "companion", "service", "tutor"]
    with pytest.raises(NotFound, match="There are: assistant, companion"):
        find_sample("oracle")


@EACH
def test_a_sample_defines_one_bot_of_its_name_that_reads_its_documents(sample: Sample) -> None:
    bots = load_configuration(sample.folder / "turnmill.toml").bots
    assert [*bots] == [sample.name]
    bot = bots[sample.name]
    assert bot.instructions
    assert bot.policies.knowledge == (sample.name if sample.documents else None)


@EACH
def test_questions_name_documents_that_there_are(sample: Sample) -> None:
    questions = list(sample.questions())
    assert len(questions) >= 4
    files = {path.name for path in sample.documents.iterdir()} if sample.documents else set()
    assert {each.source for each in questions} - {None} <= files
    assert any(re.search(r"[\u4e00-\u9fff]", each.text) for each in questions)
    if sample.documents:
        assert {each.source for each in questions} == {*files, None}


def test_the_companion_remembers_only_who_agrees_and_leads_to_a_person() -> None:
    (bot,) = load_configuration(find_sample("companion").folder / "turnmill.toml").bots.values()
    assert (bot.policies.memory.on, bot.policies.memory.basis) == (True, "consent")
    assert {"human", "人工"} <= {*bot.policies.hand_off_words}

"""The sample bots with the default model: the form of what they say, not whether it is right."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.conftest import MODELS_DIR
from tests.integration.samples.asking import ask_all
from turnmill.producer.cli.context import System
from turnmill.producer.cli.samples.install import find_sample, install
from turnmill.schemas.citations.markers import ALL, find_citations
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.testing import InlineWorker

#: Of each reply, tokens.
SHORT = 24
UNSURE = ("I am not sure", "这个问题我不确定", "我不确定您问的是哪一个")


@pytest.mark.parametrize("name", ["service", "tutor"])
def test_replies_cite_only_what_was_shown_and_what_no_document_holds_is_declined(
    name: str,
    embedded_stack_is_installed: None,
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
) -> None:
    running = make_system(database_url, valkey_url)
    engine = EngineSettings(name="openvino", models_dir=MODELS_DIR)
    running.settings = running.settings.model_copy(update={"engine": engine})
    sample = find_sample(name)
    install(System(running.settings, running.database, running.tenant_id), sample)
    with InlineWorker(running.settings):
        answers = ask_all(running, sample, SHORT)
    for answer in answers:
        if answer.is_declined:
            assert answer.reply.startswith(UNSURE)
        else:
            assert answer.reply
            assert {each.number for each in find_citations(answer.reply, ALL)} <= {*answer.citable}
    foreign = [each for each in answers if each.question.source is None]
    assert [each for each in foreign if not each.is_declined] == []
    assert any(not each.is_declined for each in answers)

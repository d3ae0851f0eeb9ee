"""The sample bots' questions go the whole way of a turn, by an engine that repeats them."""

from typing import Any

import pytest

from tests.integration.samples.asking import ask_all
from tests.integration.samples.test_documents import READING
from turnmill.producer.cli.context import System
from turnmill.producer.cli.samples.install import find_sample, install
from turnmill.workers.testing import InlineWorker


@pytest.mark.parametrize("name", READING)
def test_what_the_documents_hold_is_answered_from_them_and_the_rest_declined(
    running: Any, system: System, name: str
) -> None:
    sample = find_sample(name)
    install(system, sample)
    with InlineWorker(running.settings):
        answers = ask_all(running, sample)
    for answer in answers:
        if answer.question.source is None:
            assert answer.is_declined, answer
        elif not answer.is_declined:
            assert answer.question.source in answer.uris, answer
            assert len(answer.citable) == len(answer.uris)
    answered = [each for each in answers if each.question.source]
    assert sum(each.is_declined for each in answered) <= 0.1 * len(answered)

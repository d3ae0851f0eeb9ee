"""The sample bots without documents answer whatever they are asked."""

from typing import Any

import pytest

from tests.integration.pages.commands import Command, run
from turnmill.producer.cli.samples.install import find_sample
from turnmill.workers.testing import InlineWorker


@pytest.mark.parametrize("name", ["assistant", "companion"])
def test_the_commands_that_an_installed_sample_suggests_are_answered(
    running: Any, name: str
) -> None:
    folder = find_sample(name).folder
    said = run(f"turnmill bots sample {name}", running.variables, folder)
    suggested = [line.strip() for line in said.splitlines() if "turnmill ask" in line]
    assert len(suggested) == 3
    with InlineWorker(running.settings):
        for line in suggested:
            assert Command.of(line).words[1] in run(line, running.variables, folder)

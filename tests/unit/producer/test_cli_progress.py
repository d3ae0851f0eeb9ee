"""The bar of a long command: how far it is, and how long it still takes."""

import pytest
from rich.console import Console
from rich.progress import Progress

from turnmill.producer.cli.views.progress import Bars


@pytest.mark.parametrize("finished", [0, 8])
def test_the_time_left_counts_only_work_that_this_run_did(finished: int) -> None:
    clock = [0.0]
    console = Console(quiet=True)
    rows = Progress(console=console, get_time=lambda: clock[0])
    bars = Bars(console, rows)

    bars.start(12, "quantizing")
    bars.advance(finished)
    for _ in range(2):
        clock[0] += 10
        bars.advance()

    (task,) = rows.tasks
    assert task.completed == finished + 2
    assert task.time_remaining == (12 - finished - 2) * 10


def test_a_step_moves_while_none_of_its_stages_runs() -> None:
    clock = [0.0]
    rows = Progress(console=Console(quiet=True), get_time=lambda: clock[0])
    bars = Bars(Console(quiet=True), rows)
    for step in ("step 1 of 2: prune", "step 2 of 2: quantize"):
        began = clock[0]
        bars.note(step)
        bars.start(2, "layers")
        bars.advance(2)
        clock[0] += 300  # the model is saved, and loaded again
        (running,) = (task for task in rows.tasks if not task.finished)
        assert running.description == step
        assert running.elapsed == clock[0] - began

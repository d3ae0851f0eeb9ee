"""Something moves while a stack starts; a long step of a worker is in its log."""

import io

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from turnmill.producer.cli.views.steps import Steps
from turnmill.workers.engines import reporting


def test_a_pipe_gets_one_line_a_step() -> None:
    out = io.StringIO()
    with Steps(Console(file=out, width=200)) as steps:
        steps("Starting PostgreSQL")
        steps("Starting the worker")
    lines = out.getvalue().splitlines()
    assert [line.split(" (")[0] for line in lines] == ["Starting PostgreSQL", "Starting the worker"]


def test_a_terminal_shows_the_seconds_of_the_step_that_runs() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Steps(console) as steps:
        steps("Starting PostgreSQL")
        steps("Starting Valkey")
    assert "Starting Valkey" in out.getvalue()
    assert "0:00:00" in out.getvalue()


def test_a_long_conversion_is_reported_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "EVERY_S", 0.01)
    with capture_logs() as logs, reporting.reporting("model.converting", source="m"):
        while len(logs) < 2:
            pass
    assert {entry["event"] for entry in logs} == {"model.converting"}
    assert logs[0]["source"] == "m"

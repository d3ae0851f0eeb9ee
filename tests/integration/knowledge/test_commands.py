"""The commands of gates and gaps, as an owner of documents uses them."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.knowledge.conftest import Library, Reading
from tests.integration.knowledge.test_ladder import FAQ, Shop
from turnmill.producer.cli.entry import main
from turnmill.producer.knowledge.gaps.listing import list_groups
from turnmill.schemas.ids import Prefix, show_id
from turnmill.workers.testing import InlineWorker

PAWNS = "Are chess pawns carved out of ivory?"

Turnmill = Callable[..., tuple[int, str]]


@pytest.fixture
def system(
    make_system: Callable[..., Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Any:
    system = make_system(database_url, "amqp://nobody", rescue_every_s=60.0)
    for name, value in system.variables.items():
        monkeypatch.setenv(name, value)
    return system


@pytest.fixture
def turnmill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Turnmill:
    monkeypatch.setenv("COLUMNS", "250")

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


def test_a_gate_is_fitted_by_sync_shown_and_measured(
    system: Any, engine: Reading, turnmill: Turnmill, tmp_path: Path
) -> None:
    with InlineWorker(system.settings):
        _, said = turnmill("knowledge", "sync", "shop", str(FAQ / "en.csv"))
        assert "'shop' is calibrated to a precision of 90%." in said
        assert "calibrated 20" in turnmill("knowledge", "list")[1]
        assert "is calibrated" not in turnmill("knowledge", "sync", "shop", str(FAQ / "en.csv"))[1]
    _, said = turnmill("knowledge", "search", "shop", PAWNS)
    assert "This does not answer the question (with a probability of 0." in said
    asked = tmp_path / "asked.csv"
    with (FAQ / "en.csv").open(newline="") as file, asked.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["question", "answered_by"])
        rows.writerows([row["asked"], row["question"]] for row in csv.DictReader(file))
    options = ("--questions", str(asked), "--measure-only")
    _, said = turnmill("knowledge", "calibrate", "shop", *options)
    assert "your questions that have an answer" in said
    status, said = turnmill("knowledge", "calibrate", "shop", "--precision", "0.8")
    assert (status, "to a precision of 80%" in said) == (0, True)
    status, said = turnmill("knowledge", "calibrate", "shop", "--measure-only")
    assert (status, "--questions" in said) == (64, True)


def test_gaps_are_listed_answered_and_dismissed(
    system: Any, library: Library, engine: Reading, turnmill: Turnmill
) -> None:
    assert "There are no open gaps." in turnmill("gaps", "list")[1]
    shop = Shop(system, library, engine)
    with InlineWorker(system.settings):
        shop.ask(PAWNS)
    gap = show_id(Prefix.GAP, list_groups(system.database, system.tenant_id)[0].first.id)
    _, said = turnmill("gaps", "list", "--collection", "shop")
    assert gap in said
    assert PAWNS in said
    status, said = turnmill("gaps", "answer", gap, "Of wood.", "--question", "Which timber?")
    assert status == 1
    assert f"Still open: {PAWNS}" in said
    status, said = turnmill("gaps", "answer", gap, "Our chess pawns are of olive wood.")
    assert status == 0
    assert "1 of 1 questions pass" in said
    assert "There are no open gaps." in turnmill("gaps", "list")[1]
    assert turnmill("gaps", "dismiss", gap)[1].strip() == "Dismissed 0."
    assert turnmill("gaps", "dismiss", "gap_" + "0" * 32)[0] == 64

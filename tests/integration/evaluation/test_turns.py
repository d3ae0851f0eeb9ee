"""Metrics of stored turns."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu")

from typer.testing import CliRunner

from tests.integration.evaluation.conftest import Desk
from turnmill.producer.cli.app import app
from turnmill.producer.tenants import create_tenant, save_bot
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.turns import GenerationParams


def evaluate(folder: Path, *words: str) -> Any:
    """Run the command and return the groups of its report."""
    done = CliRunner().invoke(app, ["evaluate", "turns", "--output", str(folder), *words])
    assert done.exit_code == 0, done.output
    return json.loads((folder / "report.json").read_text())["groups"]


def test_stored_turns_are_measured_per_bot(desk: Desk, tmp_path: Path) -> None:
    save_bot(desk.database, desk.tenant_id, "other", desk.bot, "", GenerationParams(max_tokens=2))
    desk.ask("one two three", "one two three four five")
    desk.ask("I don't know what that is", bot="other")

    second, first = evaluate(tmp_path)

    assert (first["name"], first["replies"], first["conversations"]) == (desk.bot, 2, 1)
    assert (first["length"]["value"], first["cut"]["value"]) == (4, 0)
    assert (second["name"], second["cut"]["value"]) == ("other", 1)
    assert first["scores"] is None
    assert len(evaluate(tmp_path, "--bot", "other")) == 1


def test_references_of_a_file_belong_to_their_turns(desk: Desk, tmp_path: Path) -> None:
    first, _ = desk.ask("订单已经发出", "再见")
    references = tmp_path / "references.csv"
    references.write_text(f"turn_id,reference\n{show_id(Prefix.TURN, first)},订单已经发出\n")

    (group,) = evaluate(tmp_path, "--references", str(references))

    assert group["scores"]["replies"] == 1
    assert group["scores"]["bleu"]["value"] == pytest.approx(100)


def test_tenants_do_not_see_each_others_replies(desk: Desk, tmp_path: Path) -> None:
    desk.ask("mine")
    create_tenant(desk.database, "acme", desk.settings)
    words = ["evaluate", "turns", "--tenant", "acme", "--output", str(tmp_path)]

    assert "no reply" in str(CliRunner().invoke(app, words).exception)
    (group,) = evaluate(tmp_path, "--all-tenants", "--by", "tenant")
    assert group["name"] == "default"

"""The replay gate with a real model: a bot fails at temperature 2, and not against itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino_genai")
pytest.importorskip("sacrebleu")

from typer.testing import CliRunner

from turnmill.producer.accept import accept_many
from turnmill.producer.cli.app import app
from turnmill.producer.tenants import ensure_defaults, save_bot
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.turns import GenerationParams, Lane, Message, Role, TurnRequest
from turnmill.workers.testing import InlineWorker

MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()

PLACES = (
    "France", "Spain", "Italy", "Greece", "Egypt", "Kenya", "India", "China", "Japan", "Peru",
    "Chile", "Brazil", "Canada", "Mexico", "Cuba", "Norway", "Sweden", "Poland", "Turkey", "Iran",
    "Nepal", "Vietnam", "Ghana", "Morocco",
)  # fmt: skip

COOL = GenerationParams(temperature=0.2, top_p=0.9, max_tokens=24)
HOT = GenerationParams(temperature=2.0, top_p=1.0, max_tokens=24)


FAILED = 1


def replay(folder: Path, candidate: str) -> tuple[int, Any]:
    words = ["--bot", "cool", "--against", candidate, "--output", str(folder)]
    done = CliRunner().invoke(app, ["evaluate", "replay", *words])
    report = json.loads((folder / "report.json").read_text())
    return done.exit_code, {gate["name"]: gate["verdict"] for gate in report["gates"]}


def test_a_bot_fails_at_temperature_2_and_not_against_itself(
    database_url: str,
    tmp_path: Path,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    settings = load_settings(engine={"name": "openvino", "models_dir": MODELS_DIR})
    database = Database(settings.database)
    tenant_id = ensure_defaults(database, settings)
    for name, params in (("cool", COOL), ("hot", HOT)):
        save_bot(database, tenant_id, name, settings.engine.model_name, "", params)
    asked = [
        TurnRequest(
            tenant_id=tenant_id,
            bot="cool",
            messages=(Message(role=Role.USER, content=f"What is the capital of {place}?"),),
            lane=Lane.BATCH,
        )
        for place in PLACES
    ]
    accept_many(database, asked)
    try:
        with InlineWorker(settings):
            eventually(lambda: replied(database) == len(PLACES), 300)
            # 24 turns of a small model may be too few to pass.
            assert replay(tmp_path / "same", "cool")[0] != FAILED
            status, verdicts = replay(tmp_path / "hot", "hot")
    finally:
        database.close()

    assert status == FAILED
    assert verdicts["similarity"] == "failed"


def replied(database: Database) -> int:
    return int(database.run("SELECT count(*) AS n FROM replies")[0].n)

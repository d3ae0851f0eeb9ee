"""A model of the catalogue from the hub to a reply, by the commands that a person types.

The hub is a stand-in on loopback, and the weights are those of a tiny random model.
"""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnmill.infra.mocks.hub import Hub
from turnmill.workers.engines.catalogue import CATALOGUE

MODEL = CATALOGUE[1]
WEIGHTS = "model.safetensors"
FORM = ("--form", "safetensors")

Eventually = Callable[..., None]


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    with Hub() as hub:
        files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        # First, so that an interruption meets them.
        hub.files[MODEL.checkpoint_repo] = {WEIGHTS: files.pop(WEIGHTS), **files}
        yield hub


@pytest.fixture
def terminal(make_terminal: Callable[..., Any], hub: Hub, tmp_path: Path) -> Any:
    pytest.importorskip("transformers")
    return make_terminal(
        HF_ENDPOINT=hub.url,
        HF_TOKEN="",
        TURNMILL_ENGINE__MODELS_DIR=str(tmp_path / "models"),
        TURNMILL_ENGINE__DEVICE="cpu",
        OMP_NUM_THREADS="1",
    )


def written(folder: Path) -> int:
    """Bytes of what is not whole yet."""
    return sum(part.stat().st_size for part in folder.rglob("*.part"))


def test_a_model_is_pulled_through_an_interruption_and_answers(
    terminal: Any, hub: Hub, tmp_path: Path, eventually: Eventually
) -> None:
    unknown = terminal.run("up", "--model", MODEL.name)
    assert unknown.returncode == 64
    assert f"turnmill models pull {MODEL.name}" in unknown.stderr

    hub.file_faults = ["stall"]
    with (tmp_path / "killed.log").open("wb") as log:
        killed = terminal.start("models", "pull", MODEL.name, *FORM, output=log)
    try:
        eventually(lambda: written(tmp_path) > 0, timeout_s=60)
    finally:
        killed.kill()
        killed.wait(10)
    kept = written(tmp_path)
    assert terminal.run("models", "verify", MODEL.name).returncode == 64
    pulled = terminal.run("models", "pull", MODEL.name, *FORM)
    assert pulled.returncode == 0, pulled.stderr
    assert re.search(rf"{MODEL.name}: \d+% of ", pulled.stdout)
    assert "its checksums are right" in pulled.stdout
    assert hub.ranges[:2] == [None, f"bytes={kept}-"]
    assert "files are as they were written" in terminal.run("models", "verify", MODEL.name).stdout
    listed = json.loads(terminal.run("models", "list", "--json").stdout)
    assert listed["pulled"] == [
        {"name": MODEL.name, "forms": ["safetensors"], "licence": MODEL.licence}
    ]

    log_path = tmp_path / "up.log"
    with log_path.open("wb") as log:
        up = terminal.start("up", "--model", MODEL.name, output=log)
    eventually(
        lambda: (
            up.poll() is not None
            or f"Turnmill is up with the model {MODEL.name}" in log_path.read_text()
        ),
        timeout_s=180,
    )
    assert up.poll() is None, log_path.read_text()
    asked = terminal.run("ask", "Where is my parcel?", "--max-tokens", "8", timeout_s=120)
    assert asked.returncode == 0, asked.stderr
    shown = json.loads(terminal.run("turns", "list", "--json").stdout)
    assert [(each["state"], each["model"]) for each in shown["turns"]] == [
        ("completed", MODEL.name)
    ]
    up.send_signal(signal.SIGINT)
    assert up.wait(60) in (0, 130)
    eventually(lambda: terminal.processes() == [])

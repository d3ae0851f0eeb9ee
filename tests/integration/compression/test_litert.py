"""Exports to LiteRT, run and compared in environments of their own: `make test-litert`."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.selection import LITERT, TENSORFLOW

pytestmark = pytest.mark.needs("litert")


def run(python: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a module of compression/export in the environment of this interpreter."""
    return subprocess.run(
        [str(python), "-m", *arguments], capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize(
    ("weights", "bytes_a_weight", "limit"), [("float16", 2, 1e-3), ("int8", 1, 0.05)]
)
def test_a_converted_model_answers_like_the_checkpoint(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    weights: str,
    bytes_a_weight: int,
    limit: float,
) -> None:
    tiny_llama.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(tmp_path / "out"), "--weights", weights]
    ran = run(LITERT, "turnmill.compression.export.litert", *arguments)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["weights"] == weights
    assert told["kl"] < limit
    bytes_of_weights = bytes_a_weight * sum(each.numel() for each in tiny_llama.parameters())
    size = (tmp_path / "out" / told["file"]).stat().st_size
    # The graph, and the causal mask in float32.
    assert bytes_of_weights < size < bytes_of_weights + 150_000
    assert [each.name for each in (tmp_path / "out").iterdir()] == [told["file"]]


def test_a_keras_model_with_float16_weights_answers_like_the_original(tmp_path: Path) -> None:
    """By the guide's command."""
    guide = (Path(__file__).parents[3] / "docs/compression.md").read_text()
    (line,) = (each for each in guide.splitlines() if "export.keras" in each)
    interpreter, _, module, name = line.partition("#")[0].split()
    assert interpreter == ".venv-tensorflow/bin/python"
    file = tmp_path / name
    ran = run(TENSORFLOW, module, str(file))
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["bytes"] == file.stat().st_size < 0.55 * told["float32_bytes"]
    assert told["largest_difference"] < 5e-3

"""The search among recipes, on a tiny model whose only step adds noise."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="pip install 'turnmill[compression]'")
pytest.importorskip("sacrebleu", reason="pip install 'turnmill[compression]'")

from tests.compression_models import make_conversations
from tests.compression_steps import NUDGE
from turnmill.compression import step
from turnmill.compression.evaluate.report import Measures
from turnmill.compression.pipeline import Job
from turnmill.compression.recipe import Recipe, parse_recipe
from turnmill.compression.search import (
    Bounds,
    Found,
    expected_bytes,
    expected_seconds,
    search,
)
from turnmill.compression.store import ModelStore

pytestmark = pytest.mark.filterwarnings("default")
WINDOWS = {"length": 64, "calibration": 8, "train": 16, "heldout": 4, "prose": 4}
QUICK = Measures(replies=0, speed_rounds=0, dtype="float32")


@pytest.fixture(autouse=True)
def nudge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    monkeypatch.setitem(step.STEPS, "nudge", NUDGE)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, total: float, label: str) -> None:
        pass

    def advance(self, done: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.said.append(text)


def noise(name: str, size: float, **limits: float) -> Recipe:
    steps = [{"kind": "nudge", "size": size}]
    content = {"name": name, "windows": WINDOWS, "step": steps, "limits": limits}
    return parse_recipe(content)


def run(
    checkpoint: Path, folder: Path, recipes: list[Recipe], bounds: Bounds, notes: Notes
) -> Found:
    job = Job(
        name="auto",
        base=checkpoint,
        base_name="tiny",
        recipe=recipes[0],
        conversations=make_conversations(),
        prose="The mill stands by the river. " * 40,
        progress=notes,
    )
    return search(job, recipes, ModelStore(folder), bounds, QUICK)


def test_search_returns_the_model_that_lost_least_and_keeps_the_others(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipes = [noise("loud", 0.5), noise("quiet", 0.001), noise("strict", 0.4, perplexity=1e-3)]

    found = run(checkpoint, tmp_path, recipes, Bounds(600), Notes())

    assert found.best is not None
    assert found.best.artifact == "auto-quiet"
    assert ModelStore(tmp_path).names() == ["auto-loud", "auto-quiet", "auto-strict"]
    assert found.report is not None
    assert [row.name for row in found.report.rows] == ["original", "loud", "quiet", "strict"]
    assert found.trials[2].misses


def test_search_whose_budget_is_spent_names_what_it_left_and_continues_when_run_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipes = [noise("first", 0.01), noise("second", 0.02)]
    now, notes = 0.0, Notes()

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    cut = run(checkpoint, tmp_path, recipes, Bounds(8, clock=clock), notes)
    whole = run(checkpoint, tmp_path, recipes, Bounds(10_000), notes)

    assert [trial.outcome for trial in cut.trials] == ["cut off", "skipped"]
    assert cut.best is None
    assert any("second: skipped. The budget is spent." in each for each in notes.said)
    assert [trial.outcome for trial in whole.trials] == ["made", "made"]


def test_search_runs_no_recipe_twice(checkpoint: Path, tmp_path: Path) -> None:
    recipes = [noise("once", 0.01)]
    first = run(checkpoint, tmp_path, recipes, Bounds(600), Notes())
    made = (tmp_path / "artifacts" / "auto-once" / "artifact.json").stat().st_mtime_ns

    again = run(checkpoint, tmp_path, recipes, Bounds(600), Notes())

    assert (tmp_path / "artifacts" / "auto-once" / "artifact.json").stat().st_mtime_ns == made
    assert again.report == first.report


def test_recipe_that_cannot_be_small_enough_is_skipped_with_its_size(
    checkpoint: Path, tmp_path: Path
) -> None:
    notes = Notes()

    found = run(checkpoint, tmp_path, [noise("big", 0.1)], Bounds(600, max_bytes=1000), notes)

    assert found.trials[0].outcome == "skipped"
    assert "over 0 MB" in notes.said[0]
    assert found.best is None
    assert found.report is None


def test_size_is_expected_as_the_dense_checkpoint_has_it(checkpoint: Path) -> None:
    bytes_of_float32 = (checkpoint / "model.safetensors").stat().st_size

    assert expected_bytes(checkpoint, noise("any", 1)) == pytest.approx(
        bytes_of_float32 / 2, rel=0.05
    )


def test_size_is_expected_of_a_config_that_calls_its_depth_otherwise(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    dropped = parse_recipe({"step": [{"kind": "drop-layers", "count": 1}]})

    assert 0 < expected_bytes(tmp_path, dropped) <= expected_bytes(tmp_path, noise("any", 1))


def test_recipes_are_ordered_by_the_seconds_of_their_steps() -> None:
    short = {"kind": "nudge", "size": 0.1}
    recipes = [parse_recipe({"step": [short] * count}) for count in (1, 3)]

    assert expected_seconds(recipes[0]) < expected_seconds(recipes[1])

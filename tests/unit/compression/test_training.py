"""The training loop: its schedule, its determinism, its resumption, and what it keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from turnmill.compression.distill import training
from turnmill.compression.distill.finetune import next_token_loss, rows_of_length
from turnmill.compression.distill.training import (
    CHECKPOINT,
    Trained,
    TrainingOptions,
    learning_rate,
    picked_rows,
    train,
)
from turnmill.compression.prune.masks import KeptZeros
from turnmill.compression.step import Silent
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(Exception):
    pass


class KilledAfter(Silent):
    """Ends the process, as far as the run can tell, after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self, done: float = 1) -> None:
        self.steps -= done > 0
        if self.steps < 0:
            raise Killed


Run = Callable[..., Trained]


@pytest.fixture
def run(tiny_texts: Texts, tmp_path: Path) -> Run:
    windows = rows_of_length(tiny_texts.train, 32)

    def run(model: Any, progress: Any = None, folder: Path = tmp_path, **options: Any) -> Trained:
        chosen = TrainingOptions(**{"steps": 6, "learning_rate": 1e-3, "length": 32} | options)
        return train(
            model,
            len(windows),
            lambda network, rows: next_token_loss(network, windows[rows]),
            chosen,
            seed=7,
            folder=folder,
            progress=progress or Silent(),
        )

    return run


def weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, weight in left.items():
        assert torch.equal(weight, right[name]), name


def test_training_lowers_the_loss(tiny_llama: Any, run: Run) -> None:
    done = run(tiny_llama, steps=20, learning_rate=5e-3)
    assert done.steps == 20
    assert done.last_loss < 0.8 * done.first_loss
    assert not tiny_llama.training


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"l1": 0.5}, {"bf16": False}])
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(
    tiny_llama_maker: Callable[[], Any],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0.0)

    def model() -> Any:
        made = tiny_llama_maker()
        for layer in made.model.layers:
            layer.self_attn.attention_dropout = 0.1
        return made

    whole, cut = model(), model()
    run(whole, folder=tmp_path / "whole", **options)
    with pytest.raises(Killed):
        run(cut, KilledAfter(4), tmp_path / "cut", **options)
    cut = model()
    done = run(cut, folder=tmp_path / "cut", **options)
    assert done.steps == 6
    assert_same(weights(whole), weights(cut))


def test_a_finished_run_is_not_trained_again(tiny_llama_maker: Any, run: Run) -> None:
    first, second = tiny_llama_maker(), tiny_llama_maker()
    run(first)
    run(second, KilledAfter(1))
    assert_same(weights(first), weights(second))


def test_the_checkpoint_of_another_run_is_ignored(
    tiny_llama_maker: Any, run: Run, tmp_path: Path
) -> None:
    after_other, fresh = tiny_llama_maker(), tiny_llama_maker()
    run(tiny_llama_maker(), learning_rate=1e-2)
    run(after_other)
    run(fresh, folder=tmp_path / "empty")
    assert_same(weights(after_other), weights(fresh))


def test_a_time_budget_ends_the_run(tiny_llama: Any, run: Run) -> None:
    done = run(tiny_llama, steps=None, minutes=0.005)
    assert done.steps >= 1
    assert done.seconds >= 0.3


def test_zeros_of_a_pruned_model_stay_zero(tiny_llama: Any, run: Run) -> None:
    layer = tiny_llama.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        layer[::2] = 0
    before = layer.clone()
    run(tiny_llama)
    assert torch.equal(layer == 0, before == 0)
    assert not torch.equal(layer, before)


def test_zeros_are_given_up_on_request(tiny_llama: Any, run: Run) -> None:
    layer = tiny_llama.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        layer[::2] = 0
    run(tiny_llama, keep_zeros=False)
    assert int((layer == 0).sum()) == 0


def test_adapters_are_refused_on_a_pruned_model(tiny_llama: Any, run: Run) -> None:
    with torch.no_grad():
        tiny_llama.model.layers[0].mlp.up_proj.weight[::2] = 0
    with pytest.raises(InvalidInput, match="leave out lora"):
        run(tiny_llama, lora=4)


def test_adapters_are_merged_into_a_plain_model(tiny_llama: Any, run: Run) -> None:
    before = weights(tiny_llama)
    run(tiny_llama, lora=4)
    after = weights(tiny_llama)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}


def test_an_l1_penalty_drives_weights_to_zero(tiny_llama: Any, run: Run) -> None:
    assert KeptZeros(tiny_llama).share == 0
    run(tiny_llama, steps=20, l1=10.0)
    assert KeptZeros(tiny_llama).share > 0.3


def test_the_embedding_is_trained_on_request_only(tiny_llama: Any, run: Run) -> None:
    embedding = tiny_llama.get_input_embeddings().weight
    before = embedding.clone()
    run(tiny_llama)
    assert torch.equal(embedding, before)
    run(tiny_llama, embeddings=True)
    assert not torch.equal(embedding, before)


def test_the_model_keeps_its_dtype(tiny_llama: Any, run: Run) -> None:
    run(tiny_llama.bfloat16(), steps=1)
    assert tiny_llama.dtype == torch.bfloat16


def test_a_diverging_run_is_refused_in_words(tiny_llama: Any, run: Run) -> None:
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InvalidInput, match=r"not finite.*learning_rate"):
        run(tiny_llama)


def test_a_run_needs_an_end() -> None:
    with pytest.raises(ValidationError, match="steps, minutes or both"):
        TrainingOptions()


def test_every_row_is_read_once_an_epoch() -> None:
    epochs = torch.cat([picked_rows(step, 10, 4, seed=1) for step in range(5)])
    assert sorted(epochs[:10].tolist()) == sorted(epochs[10:].tolist()) == list(range(10))
    assert epochs[:10].tolist() != epochs[10:].tolist()
    assert picked_rows(3, 10, 4, seed=2).tolist() != picked_rows(3, 10, 4, seed=1).tolist()


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero() -> None:
    options = TrainingOptions(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(step, step / 100, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(1.0, rel=0.05)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.001


def test_the_checkpoint_is_written_aside_and_renamed(
    tiny_llama: Any, run: Run, tmp_path: Path
) -> None:
    run(tiny_llama)
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT]

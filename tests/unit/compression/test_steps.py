"""The steps finetune, distill, prune and drop-layers on a tiny model, from options to report."""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from turnmill.compression.calibration import linears_of
from turnmill.compression.distill import training
from turnmill.compression.distill.cache import TeacherCache, _Layout, bytes_per_window
from turnmill.compression.distill.finetune import Finetune, next_token_loss
from turnmill.compression.distill.step import Distill, DistillOptions
from turnmill.compression.distill.training import TrainingOptions
from turnmill.compression.prune.masks import KeptZeros
from turnmill.compression.prune.step import DropLayers, DropLayersOptions, Prune, PruneOptions
from turnmill.compression.quantize.step import QuantizeOptions
from turnmill.compression.recipe import parse_recipe
from turnmill.compression.step import STEPS, Options, Silent, State, find_step
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING: dict[str, Any] = {"steps": 4, "batch": 4, "length": 32, "learning_rate": 1e-3}


class Killed(Exception):
    pass


class KilledAt(Silent):
    def __init__(self, label: str, after: int) -> None:
        self.label, self.left, self.counts = label, after, False

    def start(self, total: float, label: str) -> None:
        self.counts = label == self.label

    def advance(self, done: float = 1) -> None:
        self.left -= self.counts and done > 0
        if self.left < 0:
            raise Killed


StateMaker = Callable[..., State]


@pytest.fixture
def make_state(
    tiny_llama_maker: Callable[..., Any], tiny_tokenizer: Any, tiny_texts: Texts, tmp_path: Path
) -> StateMaker:
    def make(folder: str = "scratch", layers: int = 4) -> State:
        (tmp_path / folder).mkdir(exist_ok=True)
        return State(
            tiny_llama_maker(layers=layers),
            tiny_tokenizer,
            tiny_texts,
            lambda: tiny_llama_maker(layers=layers),
            tmp_path / folder,
            seed=3,
        )

    return make


def loss_of(state: State) -> float:
    with torch.no_grad():
        return float(next_token_loss(state.model, state.texts.heldout))


def assert_same_model(left: Any, right: Any) -> None:
    theirs = right.state_dict()
    for name, weight in left.state_dict().items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("kind", ["finetune", "distill", "on-policy", "prune", "drop-layers"])
def test_steps_are_found_by_their_name_in_recipes(kind: str) -> None:
    assert kind in STEPS
    assert find_step(kind).options.__doc__


def test_finetune_lowers_the_loss_on_held_out_dialogue(make_state: StateMaker) -> None:
    state = make_state()
    before = loss_of(state)
    told = Finetune()(state, TrainingOptions(**TRAINING | {"steps": 20}), Silent())
    assert loss_of(state) < before
    assert told["steps"] == 20
    json.dumps(told)


@pytest.mark.parametrize("method", ["magnitude", "taylor", "wanda", "sparsegpt"])
@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_prune_sets_exactly_the_share_asked_for_to_zero(
    make_state: StateMaker, method: str, how: dict[str, Any]
) -> None:
    state = make_state(layers=2)
    told = Prune()(state, PruneOptions.model_validate({"method": method, **how}), Silent())
    assert told["zeros"] == 0.5
    for layer in linears_of(state.model).values():
        assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2
        if "pattern" in how:
            assert ((layer.weight == 0).reshape(-1, 4).sum(1) == 2).all()
    json.dumps(told)


def test_the_cleverer_the_importance_the_smaller_the_error(make_state: StateMaker) -> None:
    """On a model trained for a moment: random weights have no importance to find."""
    finetuned = make_state()
    Finetune()(finetuned, TrainingOptions(**TRAINING | {"steps": 40}), Silent())
    trained = finetuned.model.state_dict()
    losses = []
    for method in ("magnitude", "wanda", "sparsegpt"):
        state = make_state()
        state.model.load_state_dict(trained)
        Prune()(state, PruneOptions.model_validate({"method": method}), Silent())
        losses.append(loss_of(state))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("method", ["mlp", "heads"])
def test_structured_pruning_shrinks_the_model(make_state: StateMaker, method: str) -> None:
    state = make_state()
    before = state.model.num_parameters()
    told = Prune()(state, PruneOptions.model_validate({"method": method}), Silent())
    part = "mlp" if method == "mlp" else "self_attn"
    halved = sum(
        each.weight.numel() for name, each in linears_of(state.model).items() if part in name
    )
    assert before - told["parameters"] == halved
    assert loss_of(state) < 20


def test_a_share_that_removes_no_heads_is_refused_before_work(make_state: StateMaker) -> None:
    config = make_state().model.config
    with pytest.raises(InvalidInput, match=r"none of the model's 2 .* Set 'sparsity' to 0\.26"):
        PruneOptions(method="heads", sparsity=0.15).check(config)
    state, least = make_state(), PruneOptions(method="heads", sparsity=0.26)
    least.check(config)
    Prune()(state, least, Silent())
    assert state.model.config.num_key_value_heads == 1
    with pytest.raises(InvalidInput, match="Prune with 'mlp'"):
        Prune()(state, least, Silent())


@pytest.mark.parametrize(
    "options", [QuantizeOptions(bits=8, method="rtn"), PruneOptions(method="magnitude")]
)
def test_a_model_without_linear_layers_is_refused_before_work(options: Options) -> None:
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4)
    with pytest.raises(InvalidInput, match="'gpt2' have no linear layers"):
        options.check(config)
    # bitsandbytes quantizes its layers too.
    assert QuantizeOptions(method="bnb-nf4").check(config) is config


def test_a_model_without_linear_layers_is_fine_tuned(make_state: StateMaker) -> None:
    state = make_state()
    size = state.model.config.vocab_size
    state.model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=4))
    assert Finetune()(state, TrainingOptions(**TRAINING), Silent())["zeros"] == 0


def test_recovery_keeps_the_zeros_and_lowers_the_loss(make_state: StateMaker) -> None:
    plain, recovered = make_state("plain"), make_state("recovered")
    options = {"method": "magnitude", "sparsity": 0.6}
    Prune()(plain, PruneOptions.model_validate(options), Silent())
    recovery = TRAINING | {"steps": 10}
    chosen = PruneOptions.model_validate({**options, "stages": 2, "recovery": recovery})
    told = Prune()(recovered, chosen, Silent())
    assert told["zeros"] == pytest.approx(0.6, abs=1e-3)
    assert [each["steps"] for each in told["recovery"]] == [10, 10]
    assert loss_of(recovered) < loss_of(plain)


def test_drop_layers_takes_those_of_the_lowest_influence(make_state: StateMaker) -> None:
    state = make_state()
    told = DropLayers()(state, DropLayersOptions(count=2), Silent())
    influence = told["influence"]
    assert state.model.config.num_hidden_layers == 2
    assert max(influence[i] for i in told["dropped"]) <= min(
        each for i, each in enumerate(influence) if i not in told["dropped"]
    )


def test_drop_layers_takes_those_named(make_state: StateMaker) -> None:
    state = make_state()
    kept = state.model.model.layers[3].mlp.up_proj.weight
    DropLayers()(state, DropLayersOptions(layers=(1, 2)), Silent())
    assert torch.equal(state.model.model.layers[1].mlp.up_proj.weight, kept)


@pytest.mark.parametrize("options", [{"count": 4}, {"layers": (4,)}, {"layers": (0, 1, 2, 3)}])
def test_layers_that_cannot_be_dropped_are_named(
    make_state: StateMaker, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="leave at least one"):
        DropLayers()(make_state(), DropLayersOptions.model_validate(options), Silent())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_student_of_fewer_layers_learns_from_its_teacher(
    make_state: StateMaker, alpha: float
) -> None:
    state = make_state()
    options = DistillOptions(**TRAINING | {"steps": 20}, layers=2, alpha=alpha)
    told = Distill()(state, options, Silent())
    assert state.model.config.num_hidden_layers == 2
    assert told["last_loss"] < told["first_loss"]
    assert (state.folder / "teacher").exists() == (alpha < 1)
    json.dumps(told)


def test_a_narrower_student_learns_from_a_teacher_that_stays_as_it_is(
    make_state: StateMaker,
) -> None:
    state = make_state()
    teacher = state.model
    before = teacher.model.layers[0].mlp.down_proj.weight.clone()
    options = DistillOptions(**TRAINING, layers=2, width=0.5, teacher="current")
    Distill()(state, options, Silent())
    assert state.model.config.intermediate_size == 64
    assert state.model.config.num_hidden_layers == 2
    assert torch.equal(teacher.model.layers[0].mlp.down_proj.weight, before)


def test_a_smaller_checkpoint_can_be_the_student(
    make_state: StateMaker, tiny_llama_maker: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_llama_maker(layers=1).save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    state = make_state()
    Distill()(state, DistillOptions(**TRAINING, student=tmp_path / "small"), Silent())
    assert state.model.config.num_hidden_layers == 1
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        Distill()(state, DistillOptions(**TRAINING, student=tmp_path / "none"), Silent())


@pytest.mark.parametrize("label", ["teacher", "training"])
def test_a_killed_distillation_ends_with_the_same_student(
    make_state: StateMaker, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0.0)
    options = DistillOptions(**TRAINING, layers=2)
    whole, cut = make_state("whole"), make_state("cut")
    Distill()(whole, options, Silent())
    with pytest.raises(Killed):
        Distill()(cut, options, KilledAt(label, 1))
    again = make_state("cut")
    Distill()(again, options, Silent())
    assert_same_model(whole.model, again.model)


def test_a_finished_cache_does_not_load_the_teacher_again(make_state: StateMaker) -> None:
    def none() -> Any:
        raise AssertionError("the teacher was loaded again")

    options = DistillOptions(**TRAINING, layers=2)
    Distill()(make_state(), options, Silent())
    Distill()(replace(make_state(), teacher=none), options, Silent())
    with pytest.raises(AssertionError, match="loaded again"):
        other = DistillOptions(**TRAINING, layers=2, temperature=3.0)
        Distill()(replace(make_state(), teacher=none), other, Silent())


def test_the_teacher_writes_windows_that_a_killed_step_does_not_ask_for_again(
    make_state: StateMaker,
) -> None:
    options = DistillOptions(**TRAINING | {"steps": 2}, layers=2, generated=5)
    whole, cut = make_state("whole"), make_state("cut")
    told = Distill()(whole, options, Silent())
    assert told["windows"] == 2 * 4 + 5
    written = torch.load(whole.folder / "written.pt")["windows"]
    assert written.shape == (5, 32)
    assert len({tuple(each.tolist()) for each in written}) == 5
    with pytest.raises(Killed):
        Distill()(cut, options, KilledAt("teacher", 0))
    again = make_state("cut")
    Distill()(again, options, Silent())
    assert_same_model(whole.model, again.model)


def test_the_cache_has_its_disk_space_before_it_is_filled(tmp_path: Path) -> None:
    TeacherCache(tmp_path, _Layout("data", rows=100, positions=63, k=64, temperature=1.0))
    files = [each.stat() for each in tmp_path.iterdir()]
    assert sum(each.st_size for each in files) == 100 * bytes_per_window(64, 64)
    assert all(each.st_blocks * 512 >= each.st_size for each in files)


def test_a_teacher_with_more_tokens_than_the_student_teaches_those_that_it_has(
    make_state: StateMaker, tiny_llama_maker: Callable[..., Any]
) -> None:
    def padded() -> Any:
        teacher = tiny_llama_maker()
        teacher.resize_token_embeddings(teacher.config.vocab_size + 24, mean_resizing=False)
        return teacher

    options = DistillOptions(**TRAINING, layers=2, top_k=256, generated=40)
    state = replace(make_state(), teacher=padded)
    told = Distill()(state, options, Silent())
    assert told["steps"] == 4
    written = torch.load(state.folder / "written.pt")["windows"]
    assert int(written.max()) < len(state.tokenizer)


def test_the_cache_stays_within_its_bound(make_state: StateMaker) -> None:
    state = make_state()
    options = DistillOptions(**TRAINING | {"steps": 8, "batch": 8}, layers=2, cache_mb=1, top_k=256)
    told = Distill()(state, options, Silent())
    size = sum(each.stat().st_size for each in (state.folder / "teacher").iterdir())
    assert size <= 1_000_000 + 1000
    assert 0 < told["windows"] < 64
    too_long = options.model_copy(update={"top_k": 100_000})
    with pytest.raises(InvalidInput, match="cache_mb"):
        Distill()(state, too_long, Silent())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 3}, "give recovery"),
        ({"method": "mlp", "pattern": "2:4"}, "weight by weight"),
        ({"method": "heads", "stages": 2, "recovery": TRAINING}, "one stage"),
        ({"recovery": TRAINING | {"layers": 2}}, "no other student"),
        ({"recovery": TRAINING | {"teacher": "current"}}, "leave out teacher"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"speed": 1}, "not permitted"),
    ],
)
def test_options_of_prune_that_contradict_each_other_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneOptions.model_validate(options)


def test_zeros_survive_a_step_of_fine_tuning(make_state: StateMaker) -> None:
    state = make_state()
    Prune()(state, PruneOptions(method="wanda"), Silent())
    Finetune()(state, TrainingOptions(**TRAINING), Silent())
    assert KeptZeros(state.model).share == 0.5


def test_every_recipe_of_the_guide_is_one() -> None:
    guide = (Path(__file__).parents[3] / "docs/compression.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        recipe = parse_recipe({"name": "guide", **tomllib.loads(block)}, source="the guide")
        assert recipe.steps

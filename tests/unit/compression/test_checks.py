"""What a step cannot do with a model is refused before the steps ahead of it have run."""

from typing import Any

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from turnmill.compression.calibration import linears_of
from turnmill.compression.distill.step import DistillOptions
from turnmill.compression.export import step as export
from turnmill.compression.export.step import ExportOptions
from turnmill.compression.prune.step import DropLayersOptions, PruneOptions
from turnmill.compression.prune.weights import prune_weights
from turnmill.compression.quantize.step import QuantizeOptions
from turnmill.compression.recipe import recipe_of_flags
from turnmill.compression.step import Options, Silent
from turnmill.schemas.errors import InvalidInput, SettingsError

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def test_a_share_that_removes_no_channels_is_refused_before_work(tiny_llama: Any) -> None:
    config = tiny_llama.config  # 128 channels, which go in halves.
    with pytest.raises(InvalidInput, match=r"none of the 128 .* Set 'sparsity' to 0\.26"):
        PruneOptions(method="mlp", sparsity=0.2).check(config)
    with pytest.raises(InvalidInput, match=r"'width' to 0\.74"):
        DistillOptions(width=0.8, steps=1).check(config)
    half = PruneOptions(method="mlp", sparsity=0.26).check(config)
    assert half.intermediate_size == 64
    with pytest.raises(InvalidInput, match="Prune with 'heads'"):
        PruneOptions(method="mlp", sparsity=0.9).check(half)
    with pytest.raises(InvalidInput, match="Prune with 'heads'"):
        DistillOptions(width=0.5, steps=1).check(half)


@pytest.mark.parametrize(
    ("config", "can_drop"),
    [
        (PhiConfig(**_SMALL), True),
        (Phi3Config(**_SMALL), True),
        (Qwen3MoeConfig(num_experts=2, **_SMALL), True),
        (GPTNeoXConfig(**_SMALL), False),
    ],
    ids=lambda each: getattr(each, "model_type", None),
)
def test_a_model_that_cannot_be_cut_is_refused_before_work(
    config: PretrainedConfig, can_drop: bool
) -> None:
    steps: list[Options] = [PruneOptions(method="mlp"), DistillOptions(width=0.5, steps=1)]
    if config.model_type != "qwen3_moe":  # Its attention is a Qwen's.
        steps.append(PruneOptions(method="heads"))
    for each in steps:
        with pytest.raises(InvalidInput, match="cannot be cut"):
            each.check(config)
    if config.model_type != "qwen3_moe":
        assert PruneOptions(method="wanda").check(config) is config
    if can_drop:
        assert DropLayersOptions(count=1).check(config).num_hidden_layers == 1
        return
    with pytest.raises(InvalidInput, match="cannot be cut"):
        DropLayersOptions(count=1).check(config)


def test_a_mixture_whose_experts_are_no_linear_layers_is_not_said_to_be_compressed() -> None:
    config = Qwen3MoeConfig(num_experts=8, moe_intermediate_size=64, **_SMALL)
    for each in (
        QuantizeOptions(bits=8, method="rtn"),
        QuantizeOptions(method="bnb-nf4"),
        PruneOptions(method="wanda"),
    ):
        with pytest.raises(InvalidInput, match=r"'qwen3_moe' linear layers .* are \d+% of"):
            each.check(config)


def test_layers_and_groups_that_do_not_fit_are_refused_before_work(tiny_llama: Any) -> None:
    config = tiny_llama.config
    for layers in ({"count": 2}, {"layers": (0, 2)}):
        with pytest.raises(InvalidInput, match="leave at least one"):
            DropLayersOptions.model_validate(layers).check(config)
    with pytest.raises(InvalidInput, match="student of 3 layers"):
        DistillOptions(layers=3, steps=1).check(config)
    with pytest.raises(InvalidInput, match="Groups of 128 weights do not divide the 64 inputs"):
        QuantizeOptions(group=128).check(config)
    # The model that arrives counts: 64 of its channels are left.
    narrow = PruneOptions(method="mlp").check(DropLayersOptions(count=1).check(config))
    assert QuantizeOptions(group=64).check(narrow).num_hidden_layers == 1


def test_a_model_without_self_attn_is_pruned_weight_by_weight() -> None:
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**_SMALL)).eval()
    windows = torch.randint(0, 64, (2, 16))
    prune_weights(model, windows, "wanda", 0.5, None, Silent())
    for name, linear in linears_of(model).items():
        assert (linear.weight == 0).float().mean() == pytest.approx(0.5), name


@pytest.mark.parametrize(
    "steps",
    [
        ["qat:steps=1"],
        ["quantize:method=bnb-nf4", "qat:steps=1"],
        ["quantize:bits=8", "finetune:steps=1", "qat:steps=1"],
    ],
)
def test_qat_without_rounded_weights_is_refused_before_work(steps: list[str]) -> None:
    with pytest.raises(InvalidInput, match="right behind a step 'quantize'"):
        recipe_of_flags(steps)
    assert recipe_of_flags(["quantize:bits=8", "qat:steps=1", "qat:steps=1", "export"])


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("prune:pattern=4:4", "'4:4' is no pattern"),
        ("finetune", r"flags: step 1 \(finetune\) give steps, minutes or both"),
        ("prune:stages=2", r"step 1 \(prune\) stages without recovery"),
    ],
)
def test_what_options_say_together_is_refused_in_words(step: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        recipe_of_flags([step])


def test_an_export_of_what_it_cannot_write_is_refused_before_work(
    tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="no other format holds the weights of bitsandbytes"):
        recipe_of_flags(["quantize:method=bnb-nf4", "export"])
    assert recipe_of_flags(["quantize:method=bnb-nf4", "finetune:steps=1", "export"])
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="'litert_torch', which is not installed"):
        ExportOptions(to="litert").check(tiny_llama.config)

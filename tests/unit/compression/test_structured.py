"""Structured pruning makes a smaller, ordinary model that computes what the formulas say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from turnmill.compression.distill.students import from_layers, require_same_tokenizer
from turnmill.compression.prune.structured import (
    block_influence,
    channel_scores,
    cut_channels,
    cut_groups,
    evenly_spaced,
    group_scores,
    keep_layers,
    leave_inputs,
    refit,
)
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model: Any, windows: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=windows).logits


def size(model: Any) -> int:
    return sum(each.numel() for each in model.parameters())


def assert_saves_and_loads(model: Any, windows: Tensor, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, windows), logits(model, windows))
    # Generation uses the cache of keys and values, whose shape depends on heads and layers.
    generated = loaded.generate(windows[:, :8], max_new_tokens=4, do_sample=False)
    assert generated.shape == (len(windows), 12)


@pytest.mark.parametrize("tie", [True, False])
def test_dropped_layers_leave_a_model_that_saves_and_loads(
    tiny_llama_maker: Callable[..., Any], tiny_texts: Texts, tmp_path: Path, tie: bool
) -> None:
    model = tiny_llama_maker(layers=5, tie=tie)
    windows = tiny_texts.heldout[:2]
    cut = keep_layers(model, [0, 2, 4])
    assert cut.config.num_hidden_layers == 3
    assert size(model) - size(cut) == 2 * size(model.model.layers[0])
    assert model.config.num_hidden_layers == 5
    assert_saves_and_loads(cut, windows, tmp_path)
    # As if the layers 1 and 3 handed on what they are given.
    for i in (1, 3):
        model.model.layers[i].self_attn.o_proj.weight.data.zero_()
        model.model.layers[i].mlp.down_proj.weight.data.zero_()
    assert torch.allclose(logits(cut, windows), logits(model, windows), atol=1e-5)


def test_layers_that_do_not_exist_cannot_be_kept(tiny_llama: Any) -> None:
    for kept in ([], [0, 2], [-1]):
        with pytest.raises(InvalidInput, match="layers 0 … 1"):
            keep_layers(tiny_llama, kept)


def test_a_layer_that_hands_on_its_input_has_no_influence(
    tiny_llama_maker: Callable[..., Any], tiny_texts: Texts
) -> None:
    model = tiny_llama_maker(layers=4)
    model.model.layers[2].self_attn.o_proj.weight.data.zero_()
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    found = block_influence(model, tiny_texts.calibration[:3])
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert all(each > 0.01 for i, each in enumerate(found) if i != 2)


def test_block_influence_is_one_minus_the_cosine_of_hidden_states(
    tiny_llama: Any, tiny_texts: Texts
) -> None:
    window = tiny_texts.calibration[:1]
    with torch.no_grad():
        first, second = tiny_llama.model(input_ids=window, output_hidden_states=True).hidden_states[
            :2
        ]
    by_hand = 1 - (first * second).sum(-1) / first.norm(dim=-1) / second.norm(dim=-1)
    assert block_influence(tiny_llama, window)[0] == pytest.approx(float(by_hand.mean()), rel=1e-4)


def test_cut_channels_compute_what_zeroed_channels_do(
    tiny_llama: Any, tiny_texts: Texts, tmp_path: Path
) -> None:
    windows = tiny_texts.heldout[:2]
    kept = [torch.arange(0, 128, 2), torch.arange(64)]
    cut = cut_channels(tiny_llama, kept)
    assert cut.config.intermediate_size == 64
    assert cut.model.layers[0].mlp.down_proj.weight.shape == (64, 64)
    assert_saves_and_loads(cut, windows, tmp_path)
    for layer, channels in zip(tiny_llama.model.layers, kept, strict=True):
        gone = torch.ones(128, dtype=torch.bool)
        gone[channels] = False
        layer.mlp.down_proj.weight.data[:, gone] = 0
    assert torch.allclose(logits(cut, windows), logits(tiny_llama, windows), atol=1e-5)


def test_cut_groups_of_heads_compute_what_zeroed_heads_do(
    tiny_llama: Any, tiny_texts: Texts, tmp_path: Path
) -> None:
    windows = tiny_texts.heldout[:2]
    kept = [torch.tensor([1]), torch.tensor([0])]
    cut = cut_groups(tiny_llama, kept)
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads) == (2, 1)
    assert cut.model.layers[0].self_attn.k_proj.weight.shape == (16, 64)
    assert_saves_and_loads(cut, windows, tmp_path)
    tiny_llama.model.layers[0].self_attn.o_proj.weight.data[:, :32] = 0
    tiny_llama.model.layers[1].self_attn.o_proj.weight.data[:, 32:] = 0
    assert torch.allclose(logits(cut, windows), logits(tiny_llama, windows), atol=1e-5)


def test_refitting_makes_up_for_inputs_that_others_know(tiny_llama: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 12, generator=generator)
    inputs[:, 8:] = inputs[:, :4] - 0.5 * inputs[:, 4:8]
    weight = torch.randn(6, 12, generator=generator)
    kept = torch.arange(8)
    gram = inputs.T @ inputs
    refitted = refit(weight, gram, kept)
    full = inputs @ weight.T
    plain_error = (inputs[:, :8] @ weight[:, :8].T - full).square().mean()
    error = (inputs[:, :8] @ refitted.T - full).square().mean()
    assert error < 1e-4 * plain_error
    assert torch.equal(refit(weight, gram, torch.arange(12)), weight)
    layer = torch.nn.Linear(12, 6)
    layer.weight.data = weight.clone()
    leave_inputs(layer, gram, kept)
    assert torch.equal(layer.weight[:, :8], refitted)
    assert (layer.weight[:, 8:] == 0).all()


def test_scores_of_channels_and_groups_are_the_norms_of_what_they_add() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(n, 12, generator=generator) for n in (50, 6))
    gram = inputs.T @ inputs
    channels = [float(torch.outer(inputs[:, j], weight[:, j]).norm()) for j in range(12)]
    assert channel_scores(weight, gram).tolist() == pytest.approx(channels, rel=1e-4)
    groups = [float((inputs[:, p] @ weight[:, p].T).norm() ** 2) for p in (slice(6), slice(6, 12))]
    assert group_scores(weight, gram, 2).tolist() == pytest.approx(groups, rel=1e-4)


def test_students_take_evenly_spaced_layers_with_both_ends(
    tiny_llama_maker: Callable[..., Any],
) -> None:
    assert evenly_spaced(6, 30) == [0, 6, 12, 17, 23, 29]
    assert evenly_spaced(1, 30) == [0]
    teacher = tiny_llama_maker(layers=5)
    student = from_layers(teacher, 2)
    for mine, theirs in ((0, 0), (1, 4)):
        ours = student.model.layers[mine].mlp.up_proj.weight
        assert torch.equal(ours, teacher.model.layers[theirs].mlp.up_proj.weight)
    assert from_layers(teacher, (1, 3)).config.num_hidden_layers == 2
    with pytest.raises(InvalidInput, match="6 layers"):
        from_layers(teacher, 6)


def test_a_student_with_another_tokenizer_is_refused(tiny_tokenizer: Any) -> None:
    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {token: number + 1 for token, number in tiny_tokenizer.get_vocab().items()}

    require_same_tokenizer(tiny_tokenizer, tiny_tokenizer, "same")
    count = len(tiny_tokenizer.get_vocab())
    with pytest.raises(InvalidInput, match=rf"another tokenizer than the teacher.* {count} of the"):
        require_same_tokenizer(tiny_tokenizer, Other(), "other")

    class More:
        def get_vocab(self) -> dict[str, int]:
            return {**tiny_tokenizer.get_vocab(), "<added>": count}

    require_same_tokenizer(tiny_tokenizer, More(), "more")
    with pytest.raises(InvalidInput, match=" 1 of the teacher's"):
        require_same_tokenizer(More(), tiny_tokenizer, "fewer")

"""Quantized folders reopened with packed layers: the same numbers as transformers dequantizes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("compressed_tensors")

import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from turnmill.compression.evaluate.loading import bytes_of, load_candidate, load_dense, load_fast
from turnmill.compression.quantize.affine import Grid
from turnmill.compression.quantize.layers import Int4Linear, Int8Linear, W8A8Linear
from turnmill.compression.quantize.rtn import round_to_nearest
from turnmill.compression.quantize.save import save_compressed_tensors
from turnmill.schemas.errors import InvalidInput

IDS = torch.arange(5, 37).unsqueeze(0)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("grid", "int8_activations", "layer"),
    [
        (Grid(8), False, Int8Linear),
        (Grid(4, group=32), False, Int4Linear),
        (Grid(8), True, W8A8Linear),
        (Grid(4, group=16), False, torch.nn.Linear),
    ],
)
def test_packed_layers_answer_as_the_dequantized_model_does(
    grid: Grid,
    int8_activations: bool,
    layer: type[torch.nn.Module],
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    linears = {
        name: module
        for name, module in tiny_llama.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    rounding = partial(round_to_nearest, grid=grid)
    packed = {name: rounding(module.weight.detach()) for name, module in linears.items()}
    save_compressed_tensors(tiny_llama, packed, tmp_path, int8_activations=int8_activations)
    tiny_tokenizer.save_pretrained(tmp_path)

    fast = load_fast(tmp_path, "float32")

    slow = load_dense(tmp_path, "float32")
    with torch.inference_mode():
        mine, theirs = fast(IDS).logits, slow(IDS).logits
    assert isinstance(fast.get_submodule(next(iter(packed))), layer)
    assert (mine - theirs).norm() < (0.1 if int8_activations else 0.01) * theirs.norm()


@pytest.mark.parametrize(
    ("format", "parts"), [("safetensors", False), ("safetensors", True), ("bin", False)]
)
def test_the_size_counts_the_weights_that_transformers_loads_once(
    format: str, parts: bool, tiny_llama: Any, tmp_path: Path
) -> None:
    tiny_llama.save_pretrained(tmp_path, max_shard_size="60KB" if parts else "5GB")
    if format == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(tiny_llama.state_dict(), tmp_path / "pytorch_model.bin")
    files = list(tmp_path.glob(f"*.{format}"))
    assert (len(files) > 1) == parts
    # The same weights again, for other programs than transformers.
    (tmp_path / "consolidated.safetensors").write_bytes(b"again")
    (tmp_path / "training_args.bin").write_bytes(b"again")
    if format != "bin":
        (tmp_path / "pytorch_model.bin").write_bytes(b"again")

    assert bytes_of(tmp_path) == sum(each.stat().st_size for each in files)


def test_a_damaged_index_of_weights_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[]")

    with pytest.raises(InvalidInput, match="download it again"):
        bytes_of(tmp_path)


def test_int8_activations_are_part_of_the_measured_quality(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj"
    weight = round_to_nearest(tiny_llama.get_submodule(name).weight.detach(), grid=Grid(8))
    save_compressed_tensors(tiny_llama, {name: weight}, tmp_path, int8_activations=True)

    model = load_candidate(tmp_path, "float32")

    assert isinstance(model.get_submodule(name), W8A8Linear)


def test_tensors_that_are_saved_under_other_names_are_found_again(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """transformers writes the head of a GPT-NeoX, `lm_head`, as `embed_out`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, **sizes)).eval()
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h"
    weight = round_to_nearest(model.get_submodule(name).weight.detach(), grid=Grid(8))
    save_compressed_tensors(model, {name: weight}, tmp_path, int8_activations=True)
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")

    measured = load_candidate(tmp_path, "float32")

    assert torch.equal(measured.lm_head.weight, model.lm_head.weight)
    with torch.inference_mode():
        mine, theirs = measured(IDS).logits, model(IDS).logits
    assert (mine - theirs).norm() < 0.1 * theirs.norm()


def test_a_packed_model_that_lacks_a_tensor_is_refused(tiny_llama: Any, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    weight = round_to_nearest(tiny_llama.get_submodule(name).weight.detach(), grid=Grid(8))
    save_compressed_tensors(tiny_llama, {name: weight}, tmp_path, int8_activations=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(
        InvalidInput, match=r"lacks 1 of its model's tensors, 'model\.norm\.weight'"
    ):
        load_candidate(tmp_path)


def test_a_packed_model_replies_by_the_generation_config_of_its_folder(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_llama.generation_config.repetition_penalty = 1.8
    tiny_llama.generation_config.eos_token_id = [2, 0]
    name = "model.layers.0.mlp.up_proj"
    weight = round_to_nearest(tiny_llama.get_submodule(name).weight.detach(), grid=Grid(8))
    save_compressed_tensors(tiny_llama, {name: weight}, tmp_path, int8_activations=True)

    measured = load_candidate(tmp_path).generation_config

    assert measured.repetition_penalty == 1.8
    assert measured.to_diff_dict() == load_dense(tmp_path).generation_config.to_diff_dict()

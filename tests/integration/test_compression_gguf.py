"""Exports to GGUF hold the very weights of the model, and transformers reads them so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from turnmill.compression.export.gguf import export
from turnmill.compression.formats.gguf import Q4_0, Q8_0, pack_blocks, read_header
from turnmill.compression.step import Silent, State
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("one_thread"),
]

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")


@pytest.fixture
def state(tiny_llama: Any, tiny_tokenizer: Any, tiny_texts: Texts, tmp_path: Path) -> State:
    return State(tiny_llama, tiny_tokenizer, tiny_texts, lambda: tiny_llama, tmp_path, 1)


def quantize(model: Any, bits: int, group: int) -> dict[str, Any]:
    """Round the decoder's linear layers to nearest in place, and keep the integers."""
    packed = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            most = 2 ** (bits - 1) - 1
            groups = layer.weight.data.reshape(len(layer.weight), -1, group)
            scales = (groups.abs().amax(-1) / most).half().float()
            integers = (groups / scales[..., None]).round().clamp(-most - 1, most)
            layer.weight.data = (integers * scales[..., None]).reshape(layer.weight.shape)
            packed[name] = SimpleNamespace(
                integers=integers.reshape(layer.weight.shape).to(torch.int8),
                scales=scales,
                zeros=None,
            )
    return packed


def logits(model: Any, texts: Texts) -> Any:
    with torch.no_grad():
        return model(texts.heldout[:2]).logits


def read_back(folder: Path, name: str) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()


def test_a_dense_export_is_the_model_in_16_bits(state: State, tiny_texts: Texts) -> None:
    for each in state.model.parameters():
        each.data = each.data.bfloat16().float()
    told = export(state, state.folder, "auto", Silent())

    again = read_back(state.folder, "model-f16.gguf")

    assert told == {"file": "model-f16.gguf", "weights": "f16", "exact_matrices": 0}
    torch.testing.assert_close(
        logits(again, tiny_texts), logits(state.model, tiny_texts), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("bits", "group", "kind"), [(8, 64, "q8_0"), (4, 32, "q4_0")])
def test_a_quantized_export_holds_the_integers_that_were_chosen(
    state: State, tiny_texts: Texts, bits: int, group: int, kind: str
) -> None:
    state.packed = quantize(state.model, bits, group)
    state.format = "int8" if bits == 8 else "int4"
    told = export(state, state.folder, "auto", Silent())

    path = state.folder / f"model-{kind}.gguf"
    again = read_back(state.folder, path.name)

    assert told["exact_matrices"] == 14
    assert read_header(path).has(kind)  # type: ignore[arg-type]
    for name in state.packed:
        torch.testing.assert_close(
            again.get_submodule(name).weight, state.model.get_submodule(name).weight
        )


def test_packed_blocks_are_what_the_library_reads() -> None:
    random = numpy.random.default_rng(0)
    scales = random.uniform(0.01, 1, (6, 2)).astype(numpy.float16)
    for kind, most in ((Q8_0, 128), (Q4_0, 8)):
        integers = random.integers(-most, most, (6, 64)).astype(numpy.int8)
        packed = pack_blocks(integers, scales, kind)

        weights = gguf.dequantize(packed, gguf.GGMLQuantizationType(kind))

        expected = integers * scales.astype(numpy.float32).repeat(32, axis=1)
        numpy.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_tokenizer_comes_over(state: State) -> None:
    export(state, state.folder, "f16", Silent())

    metadata = read_header(state.folder / "model-f16.gguf").metadata

    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.eos_token_id"] == state.tokenizer.eos_token_id
    assert metadata["tokenizer.chat_template"] == state.tokenizer.chat_template


def test_an_architecture_that_gguf_export_does_not_know_is_refused(state: State) -> None:
    state.model.config.model_type = "mamba"

    with pytest.raises(InvalidInput, match="'mamba' cannot be exported"):
        export(state, state.folder, "auto", Silent())


def test_weights_that_gguf_does_not_have_are_refused(state: State) -> None:
    with pytest.raises(InvalidInput, match="no weights 'float16'"):
        export(state, state.folder, "float16", Silent())

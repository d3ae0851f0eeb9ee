"""Exports to GGUF hold the very weights of the model, and transformers reads them so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from tests.compression_models import make_qwen2
from turnmill.compression.evaluate.agreement import greedy_replies
from turnmill.compression.export.gguf import export
from turnmill.compression.formats.gguf import Q4_0, Q8_0, pack_blocks, read_header
from turnmill.compression.step import Silent, State
from turnmill.compression.texts import Conversation, Texts
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("one_thread"),
]

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")


ASKED = Conversation(
    "asked",
    ({"role": "user", "content": "where is my parcel"}, {"role": "assistant", "content": ""}),
)


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


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_model_with_biases_answers_alike_in_the_default_engine(
    tiny_tokenizer: Any, tiny_texts: Texts, tmp_path: Path, bits: int
) -> None:
    """Qwen2, whose queries, keys and values have biases, by three readers of the file."""
    model = make_qwen2()
    for each in model.parameters():
        each.data = each.data.half().float()
    state = State(model, tiny_tokenizer, tiny_texts, lambda: model, tmp_path, 1, dtype="float16")
    if bits < 16:
        state.packed = quantize(model, bits, 32)
        state.format = "int8" if bits == 8 else "int4"
    path = tmp_path / str(export(state, tmp_path, "auto", Silent())["file"])

    header = read_header(path)
    assert header.metadata["general.architecture"] == "qwen2"
    assert header.kv_values_per_token() == 2 * 2 * 2 * 16
    again = read_back(tmp_path, path.name)
    assert again.model.layers[1].self_attn.k_proj.bias.abs().max() > 0.5
    torch.testing.assert_close(
        logits(again, tiny_texts), logits(model, tiny_texts), atol=1e-4, rtol=1e-4
    )
    (expected,) = greedy_replies(model, tiny_tokenizer, [ASKED], max_tokens=12)
    quantization = {16: "none", 8: "int8", 4: "int4"}[bits]
    reply, expected = reply_of_default_engine(path, quantization), expected.rstrip("\ufffd")
    if bits == 4:
        # OpenVINO multiplies 4-bit weights with their scales in 16 bits, so that choices between
        # tokens that are almost equally likely may differ later on.
        reply, expected = reply[:4], expected[:4]
    assert reply == expected


def reply_of_default_engine(path: Path, quantization: str) -> str:
    """What the OpenVINO engine answers to `ASKED`, greedily."""
    settings = EngineSettings.model_validate(
        {
            "name": "openvino",
            "model": str(path),
            "models_dir": path.parent,
            "device": "cpu",
            "dtype": "float32",
            "quantization": quantization,
            "kv_cache_gib": 0.1,
            "context_window": 256,
        }
    )
    params = GenerationParams(temperature=0, max_tokens=12)
    prompt = Prompt((Message(role=Role.USER, content=ASKED.messages[0]["content"]),))
    engine = create_engine(settings)
    engine.start()
    try:
        chunks = list(engine.generate(prompt, params, Abort()))
    finally:
        engine.close()
    return "".join(each.text for each in chunks).rstrip("\ufffd")


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

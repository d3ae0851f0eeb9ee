"""Checkpoints that are quantized already, through the transformers engine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

pytestmark = pytest.mark.filterwarnings("default")

torch = pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
transformers = pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    # On CPUs that multiply bfloat16 bitsandbytes fails at sizes that its blocks do not divide.
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PROMPTS = ["w5 w6 w7 w9", "w31 w12", " ".join(f"w{number}" for number in range(10, 60))]
END = "<end>"
MAX_TOKENS = 12
ALREADY = r"already \(.*Leave TURNMILL_ENGINE__QUANTIZATION"


def tiny_model() -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(**SIZES)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_tokenizer(folder: Path) -> None:
    """A word for each token: `w0`, `w1`, … The end is no such word: control tokens are broken up in
    what users say, even where they only begin another word.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(SIZES["vocab_size"])}
    words[END] = words.pop("w2")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))  # noqa: S106 - a word
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(folder)


def compress(folder: Path, bits: int, group_size: int | None) -> None:
    """As llm-compressor rounds to nearest: a scale for each row, or each group of a row."""
    pytest.importorskip("compressed_tensors", reason="pip install 'turnmill[transformers]'")
    quantization = import_module("compressed_tensors.quantization")
    utils = import_module("compressed_tensors.quantization.utils")
    compressors = import_module("compressed_tensors.compressors")

    strategy = "group" if group_size else "channel"
    weights = quantization.QuantizationArgs(num_bits=bits, strategy=strategy, group_size=group_size)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    config = quantization.QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format="pack-quantized"
    )
    model = tiny_model()
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None):
            rows = module.weight.data
            groups = rows.reshape(len(rows), -1, group_size or rows.shape[1])
            scale, _ = utils.calculate_qparams(groups.amin(-1), groups.amax(-1), weights)
            module.weight_scale.data = scale
            module.quantization_status = quantization.QuantizationStatus.FROZEN
    compressor = compressors.ModelCompressor.from_pretrained_model(
        model, quantization_format="pack-quantized"
    )
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def quantize_with_bitsandbytes(folder: Path, **options: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'turnmill[transformers]'")
    tiny_model().save_pretrained(folder / "plain")
    transformers.AutoModelForCausalLM.from_pretrained(
        folder / "plain",
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=transformers.BitsAndBytesConfig(**options),
    ).save_pretrained(folder)


ARTIFACTS: dict[str, Callable[[Path], None]] = {
    "compressed-tensors W4A16": lambda folder: compress(folder, 4, 32),
    "compressed-tensors W8A16": lambda folder: compress(folder, 8, None),
    "bitsandbytes nf4": lambda folder: quantize_with_bitsandbytes(
        folder,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "bitsandbytes int8": lambda folder: quantize_with_bitsandbytes(folder, load_in_8bit=True),
}


@pytest.fixture(scope="module", params=ARTIFACTS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    ARTIFACTS[request.param](folder)
    save_tokenizer(folder)
    return folder


def settings_for(folder: Path, **others: Any) -> EngineSettings:
    values = {"name": "transformers", "model": str(folder), "dtype": "float32", "device": "cpu"}
    return EngineSettings.model_validate(values | others)


def plain_replies(folder: Path) -> list[str]:
    """Of `generate`, one prompt at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    replies = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
        )
        replies.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return replies


def test_a_quantized_checkpoint_answers_as_plain_generate_does(artifact: Path) -> None:
    params = GenerationParams(temperature=0, max_tokens=MAX_TOKENS).over(DEFAULT_PARAMS)
    engine = create_engine(settings_for(artifact))
    engine.start()

    def reply(prompt: str) -> str:
        messages = (Message(role=Role.USER, content=prompt),)
        chunks = engine.generate(Prompt(messages), params, Abort())
        return "".join(chunk.text for chunk in chunks)

    try:
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            replies = list(pool.map(reply, PROMPTS))
    finally:
        engine.close()
    expected = plain_replies(artifact)
    assert replies == expected
    assert max(len(reply.split()) for reply in replies) == MAX_TOKENS


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_what_is_quantized_already_is_not_quantized_again(artifact: Path, bits: str) -> None:
    torch_model = import_module("turnmill.workers.engines.torch.model")
    config = transformers.AutoConfig.from_pretrained(artifact)
    with pytest.raises(SettingsError, match=ALREADY):
        torch_model.check_quantized(config, settings_for(artifact, quantization=bits))


def test_an_engine_does_not_start_with_what_would_be_quantized_again(tmp_path: Path) -> None:
    compress(tmp_path, 8, None)
    save_tokenizer(tmp_path)
    with pytest.raises(SettingsError, match=ALREADY):
        create_engine(settings_for(tmp_path, quantization="int8")).start()


def test_a_missing_reader_is_named_with_the_extra_that_brings_it(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_model = import_module("turnmill.workers.engines.torch.model")
    monkeypatch.setattr(torch_model, "find_spec", lambda _: None)
    config = transformers.AutoConfig.from_pretrained(artifact)
    with pytest.raises(SettingsError, match=r"pip install 'turnmill\[transformers\]'"):
        torch_model.check_quantized(config, settings_for(artifact))

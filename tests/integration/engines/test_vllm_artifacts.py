"""Compressed checkpoints in vLLM, on the CPU: the same greedy replies as in this process.

`make test-vllm` runs it. Replies of dense weights in 32 bits are equal. vLLM multiplies int4 in
bfloat16 only, and where activations are rounded to int8 the last bit of one decides about a whole
step: there a reply begins as it was evaluated, and may part from it later. The random model here
has no likely words, which makes it part sooner than a trained one.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.compression_models import make_conversations, make_tokenizer
from turnmill.compression.evaluate.loading import Dtype
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Lane, Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

pytestmark = pytest.mark.needs("vllm")

MAX_TOKENS = 16
#: Letters of a reply that rounding leaves as they are.
SURE = 2
QUESTIONS = ("where is my parcel", "the refund is late", "thanks")
WINDOWS = {"length": 64, "calibration": 8, "train": 16, "heldout": 4, "prose": 4}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "w8a8": [{"kind": "quantize", "method": "smoothquant"}],
    "int4": [{"kind": "quantize", "bits": 4, "group": 64, "method": "rtn"}],
    "pruned": [{"kind": "prune", "method": "magnitude", "pattern": "2:4"}],
    "int8": [{"kind": "quantize", "bits": 8, "method": "rtn"}],
}


#: Of this module's model: heads of 64 are the smallest that all of vLLM's attention computes.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("models") / "base", make_tokenizer()
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def artifact_of(base: Path, name: str) -> Path:
    from turnmill.compression.pipeline import Job, compress
    from turnmill.compression.recipe import parse_recipe
    from turnmill.compression.store import ModelStore

    recipe = parse_recipe({"windows": WINDOWS, "step": RECIPES[name]})
    store = ModelStore(base.parent)
    compress(Job(name, base, "base", recipe, make_conversations(), "Prose. " * 80), store)
    return store.path(name)


def new_engine(folder: Path, dtype: str = "float32") -> Engine:
    return create_engine(
        EngineSettings.model_validate(
            {
                "name": "vllm",
                "model": str(folder),
                "device": "cpu",
                "dtype": dtype,
                "context_window": 128,
                "max_batch_size": 2,
                "kv_cache_gib": 0.1,
            }
        )
    )


def served_replies(folder: Path, dtype: str = "float32") -> list[str]:
    engine = new_engine(folder, dtype)
    engine.start()
    try:
        params = GenerationParams(temperature=0, max_tokens=MAX_TOKENS).over(DEFAULT_PARAMS)
        return [
            "".join(chunk.text for chunk in engine.generate(prompt, params, Abort()))
            for prompt in (
                Prompt((Message(role=Role.USER, content=text),), lane=Lane.INTERACTIVE)
                for text in QUESTIONS
            )
        ]
    finally:
        engine.close()


def replies_here(folder: Path, dtype: Dtype = "float32") -> list[str]:
    """What the evaluation computes with: packed layers where activations are rounded too."""
    from turnmill.compression.evaluate.loading import load_candidate, load_tokenizer

    model, tokenizer = load_candidate(folder, dtype), load_tokenizer(folder)
    replies = []
    for question in QUESTIONS:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        start = inputs["input_ids"].shape[1]
        replies.append(tokenizer.decode(output[0, start:], skip_special_tokens=True))
    return replies


def test_vllm_serves_a_pruned_artifact_with_the_replies_that_were_evaluated(base: Path) -> None:
    folder = artifact_of(base, "pruned")

    served, evaluated = (
        # Engines keep the bytes of a letter that has not ended.
        [reply.rstrip("\N{REPLACEMENT CHARACTER}") for reply in replies(folder)]
        for replies in (served_replies, replies_here)
    )
    assert served == evaluated
    assert all(served)


@pytest.mark.parametrize(("name", "dtype"), [("w8a8", "float32"), ("int4", "bfloat16")])
def test_vllm_serves_a_quantized_artifact_with_replies_that_begin_as_they_were_evaluated(
    base: Path, name: str, dtype: Dtype
) -> None:
    folder = artifact_of(base, name)

    served, evaluated = (
        [reply[:SURE] for reply in replies(folder, dtype)]
        for replies in (served_replies, replies_here)
    )
    assert served == evaluated
    assert all(served)


def test_weights_that_vllm_multiplies_on_gpus_only_are_refused_with_a_reason(base: Path) -> None:
    with pytest.raises(SettingsError, match=r"on GPUs only.*openvino.*w8a8.*int4"):
        new_engine(artifact_of(base, "int8")).start()
    with pytest.raises(SettingsError, match=r"in bfloat16 only.*dtype"):
        new_engine(artifact_of(base, "int4")).start()

"""Tiny random models for the tests of compression: made in a fraction of a second, no download."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnmill.compression.texts import Conversation, Texts, Windows, make_texts

_MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "the"), ("o", "r")]
_WORDS = [
    "please",
    "where",
    "is",
    "my",
    "order",
    "parcel",
    "refund",
    "late",
    "thanks",
    "sorry",
    "today",
    "tomorrow",
    "blue",
    "red",
]


def make_tokenizer() -> Any:
    """A byte-level tokenizer: the tokens of ChatML, 256 bytes and a few pairs."""
    from tokenizers import models, pre_tokenizers

    from turnmill.infra.bench.compression.chat_tokenizer import SPECIAL, byte_level, for_chats

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = (*SPECIAL, *alphabet, *("".join(pair) for pair in _MERGES))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return for_chats(byte_level(models.BPE(vocab=vocabulary, merges=_MERGES)))


#: Hidden size 64, 4 heads of 2 key-value groups, MLP of 128, and the tokenizer's tokens.
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_llama(seed: int = 0, *, layers: int = 2, tie: bool = True) -> Any:
    """A random Llama in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _random_model(LlamaForCausalLM, LlamaConfig, seed, layers, tie)


def make_qwen2(seed: int = 0, *, layers: int = 2, tie: bool = True) -> Any:
    """A random Qwen2 in float32: unlike a Llama's, its queries, keys and values have biases."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = _random_model(Qwen2ForCausalLM, Qwen2Config, seed, layers, tie)
    random = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if name.endswith(".bias"):  # which are zeros otherwise
            value.data = torch.randn(value.shape, generator=random) / 2
    return model


def _random_model(kind: Any, config: Any, seed: int, layers: int, tie: bool) -> Any:
    import torch
    from transformers import GenerationConfig

    sizes = {"vocab_size": len(make_tokenizer()), "num_hidden_layers": layers, **_SIZES}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config(tie_word_embeddings=tie, **sizes)).eval()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


def make_conversations(count: int = 60) -> list[Conversation]:
    """Made-up tickets, no two alike."""

    def line(number: int) -> str:
        return " ".join(_WORDS[(number * step) % len(_WORDS)] for step in (1, 3, 5, 7))

    return [
        Conversation(
            f"ticket-{index}",
            (
                {"role": "user", "content": f"{line(index)} {index}"},
                {"role": "assistant", "content": f"{line(index + 1)}."},
                {"role": "user", "content": f"{line(index + 2)}?"},
                {"role": "assistant", "content": f"{line(index + 3)}!"},
            ),
        )
        for index in range(count)
    ]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads, and much slower beside other processes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def tiny_llama() -> Iterator[Any]:
    """A random Llama of its own for each test, since most tests change it in place."""
    yield make_llama()


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_maker: Callable[..., Any],
    tiny_tokenizer: Any,
) -> Path:
    """The folder of a tiny Llama and its tokenizer, for tests that only read it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama_maker().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_maker() -> Callable[..., Any]:
    return make_llama


@pytest.fixture(scope="session")
def tiny_texts(tiny_tokenizer: Any) -> Texts:
    prose = "A river runs past the mill, and the wheel turns slowly in the morning. " * 40
    windows = Windows(length=64, calibration=8, train=32, heldout=6, prose=6)
    return make_texts(make_conversations(), prose, tiny_tokenizer, windows)

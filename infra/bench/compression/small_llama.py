"""A small Llama with honest weights: trained here in float32, on dialogues and prose.

The default checkpoint is 4-bit inside, which makes one int4 grid lossless and every other a second
rounding. What int4 costs weights that were never rounded is measured on this model.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from turnmill.compression.data import read_conversations
from turnmill.compression.distill.finetune import next_token_loss
from turnmill.compression.distill.training import TrainingOptions, train
from turnmill.compression.step import Progress
from turnmill.compression.texts import Conversation, part_of
from turnmill.infra.bench.compression.chat_tokenizer import SPECIAL, byte_level, for_chats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096

#: Of training; longer windows would make attention see more than it learns in minutes.
LENGTH = 128


def small_llama(
    folder: Path, dialogues: Path, prose: Path, *, steps: int, progress: Progress
) -> Path:
    """Return a checkpoint of 6 M parameters; train it once.

    It sees the dialogues that recipes may train on, and prose of documents that are not measured.
    """
    target = folder / "small-llama"
    if not target.exists():
        texts = [_text(each) for each in read_conversations([dialogues]) if _may_train(each)]
        texts += prose.read_text(encoding="utf-8").split("\n")
        tokenizer = train_tokenizer(texts)
        model = make_model()
        windows = _windows(tokenizer, texts)
        options = TrainingOptions.model_validate(
            {
                "steps": steps,
                "batch": 16,
                "length": LENGTH,
                "learning_rate": 2e-3,
                "embeddings": True,
                "bf16": False,
            }
        )
        train(
            model,
            len(windows),
            lambda network, rows: next_token_loss(network, windows[rows]),
            options,
            seed=1,
            folder=folder / "training",
            progress=progress,
        )
        aside = target.with_name("small-llama.partial")
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.rename(target)
    return target


def make_model() -> LlamaForCausalLM:
    """Return an untrained Llama: 6 layers of 256, grouped-query attention, tied embeddings."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


def train_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """Train byte-level BPE with ChatML's tokens and template."""
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(islice(texts, 4000), trainer)
    return for_chats(inner)


def _may_train(conversation: Conversation) -> bool:
    return part_of(conversation.id) == "train"


def _text(conversation: Conversation) -> str:
    turns = (
        f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n"
        for each in conversation.messages
    )
    return "".join(turns)


def _windows(tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str]) -> torch.Tensor:
    stream = [token for ids in tokenizer(list(texts))["input_ids"] for token in ids]
    count = len(stream) // LENGTH
    return torch.tensor(stream[: count * LENGTH]).reshape(count, LENGTH)

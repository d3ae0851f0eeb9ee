"""A tiny random model that sees, made in a moment, no download.

An Idefics3, as SmolVLM is one: vLLM reads few others without torchvision.
"""

from pathlib import Path
from typing import Any

#: Pixels of a side and of a patch; each four patches are one embedding.
_SIDE, _PATCH, _SCALE = 112, 14, 2
_EMBEDDINGS = (_SIDE // _PATCH // _SCALE) ** 2
#: Of an image: its embeddings, and three marks around them.
IMAGE_TOKENS = _EMBEDDINGS + 3

#: As Idefics3's own: it shows no text but in a part.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

_SPECIAL = [
    *("<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>"),
    "<end_of_utterance>",
]
#: Heads of 64 are the smallest that all of vLLM's attention computes.
_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}


def make_idefics3(folder: Path, seed: int = 3) -> Path:
    """Save a model of two layers that read and two that see, in float32."""
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tokenizer = _tokenizer()
    text = _SIZES | {
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    config = Idefics3Config(
        vision_config=_SIZES
        | {"image_size": _SIDE, "patch_size": _PATCH, "initializer_range": 0.3},
        text_config=text,
        scale_factor=_SCALE,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    model = Idefics3ForConditionalGeneration(config)
    # Control tokens have no text that another attempt could continue: the model writes none.
    model.lm_head.weight.data[: len(_SPECIAL)] = 0
    model.save_pretrained(folder)
    side = {"longest_edge": _SIDE}
    pixels = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    Idefics3Processor(
        pixels, tokenizer, image_seq_len=_EMBEDDINGS, chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """ASCII, one token a character: what a random model writes is read as the same tokens again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = [*map(chr, range(0x21, 0x7F)), "\u0120", "\u010a"]  # space and newline
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = dict(zip(("pad_token", "bos_token", "eos_token"), _SPECIAL, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=_SPECIAL[3:],
        chat_template=TEMPLATE,
        **named,
    )

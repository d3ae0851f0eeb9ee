"""A tiny random model that sees, made in a moment, no download."""

from pathlib import Path
from typing import Any

#: Pixels of a side, and of a patch: 16 patches, and so many tokens.
SIDE, PATCH = 56, 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2

#: As LLaVA's own (`chat_template.jinja` of llava-hf).
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }} {% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
_HEADS = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}


def make_llava(folder: Path, seed: int = 3) -> Path:
    """Save a LLaVA with a CLIP tower and a Llama of two layers each, in float32."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer()
    vision = CLIPVisionConfig(
        **_HEADS, num_hidden_layers=2, image_size=SIDE, patch_size=PATCH, projection_dim=128
    )
    text = LlamaConfig(
        **_HEADS,
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=_SPECIAL[3],
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
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

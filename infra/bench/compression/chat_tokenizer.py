"""The tokenizer of models made on the spot: byte-level BPE with ChatML's tokens and template."""

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: The padding, the beginning and the end of a message, with the numbers 0, 1 and 2.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(model: BPE) -> Tokenizer:
    """Return a tokenizer that splits text into the bytes that the model merges."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def for_chats(tokenizer: Tokenizer) -> "PreTrainedTokenizerFast":
    """Wrap it for transformers; its vocabulary must begin with `SPECIAL`."""
    from transformers import PreTrainedTokenizerFast

    padding, beginning, end = SPECIAL
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=beginning,
        eos_token=end,
        pad_token=padding,
        unk_token=padding,
    )
    wrapped.chat_template = _TEMPLATE
    return wrapped

"""A Hugging Face tokenizer, as the engines that read transformers checkpoints use it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer

from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.engines.text.markers import joint_for

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerFast


def _bytes_by_sign() -> dict[str, int]:
    """What each character of a byte-level vocabulary stands for: itself where it can be seen.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(seen))
    return {chr(byte): byte for byte in seen} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTES = _bytes_by_sign()


class HFTokenizer:
    """The tokenizer and the chat template in a model's folder."""

    def __init__(self, path: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        added = self._tokenizer.added_tokens_decoder.values()
        self._added = frozenset(self._tokenizer.added_tokens_decoder)
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        self._is_of_bytes = isinstance(getattr(fast, "decoder", None), ByteLevel)
        self.template = ChatTemplate(
            self._tokenizer.chat_template,
            bos_token=self._tokenizer.bos_token or "",
            eos_token=self._tokenizer.eos_token or "",
            control_tokens=[
                *self._tokenizer.all_special_tokens,
                *(token.content for token in added if token.special),
            ],
            own_tokens=[token.content for token in added],
            joint=joint_for(self._normalizer),
        )

    @property
    def fast(self) -> "PreTrainedTokenizerFast":
        """The tokenizer itself, for libraries that read its vocabulary."""
        return self._tokenizer

    @property
    def end_token(self) -> int | None:
        token: int | None = self._tokenizer.eos_token_id
        return token

    @property
    def _normalizer(self) -> "Normalizer | None":
        """None for tokenizers in Python, which read a text as it is or bring their own ways."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        return getattr(fast, "normalizer", None)

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes of a token, of a vocabulary of bytes; None: by decoding alone."""
        if not self._is_of_bytes or token in self._added:
            return None
        try:
            return bytes(_BYTES[sign] for sign in self._tokenizer.convert_ids_to_tokens(token))
        except (KeyError, TypeError, OverflowError):  # another alphabet, or beyond the vocabulary
            return None

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

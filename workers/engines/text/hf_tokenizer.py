"""A Hugging Face tokenizer, as the engines that read transformers checkpoints use it."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.engines.text.markers import joint_for


class HFTokenizer:
    """The tokenizer and the chat template in a model's folder."""

    def __init__(self, path: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        added = self._tokenizer.added_tokens_decoder.values()
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
    def fast(self) -> Any:
        """The tokenizer itself, for libraries that read its vocabulary."""
        return self._tokenizer

    @property
    def end_token(self) -> int | None:
        token: int | None = self._tokenizer.eos_token_id
        return token

    @property
    def _normalizer(self) -> Any:
        """None for tokenizers in Python, which read a text as it is or bring their own ways."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        return getattr(fast, "normalizer", None)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

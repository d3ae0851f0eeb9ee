"""A Hugging Face tokenizer, as the engines that read transformers checkpoints use it."""

from collections.abc import Sequence

from transformers import AutoTokenizer

from turnmill.workers.engines.text.chat_template import ChatTemplate


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
        )

    @property
    def end_token(self) -> int | None:
        token: int | None = self._tokenizer.eos_token_id
        return token

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

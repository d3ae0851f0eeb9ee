"""Tokenizer and chat template of a model that runs elsewhere: no torch, no transformers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from turnmill.schemas.errors import SettingsError
from turnmill.workers.engines.text.chat_template import TASK_TEMPLATE, ChatTemplate
from turnmill.workers.engines.text.markers import joint_for


class LocalTokenizer:
    """What a transformers checkpoint's folder says beside its weights.

    Raises:
        SettingsError: the folder has no tokenizer.json, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.config = self._read("config.json")
            settings = self._read("tokenizer_config.json")
            self._generation = self._read("generation_config.json")
        except Exception as error:
            raise SettingsError(
                f"There is no usable tokenizer in {folder}: {error}. TURNMILL_ENGINE__MODEL names "
                "a folder with the model's tokenizer.json, tokenizer_config.json and config.json."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        source = self._template(settings.get("chat_template"))
        #: The model's own; without it, a plain one takes its place.
        self.has_template = source is not None
        if source is None and self.config.get("is_encoder_decoder"):
            source = TASK_TEMPLATE
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.template = ChatTemplate(
            source,
            bos_token=_content(settings.get("bos_token")),
            eos_token=_content(settings.get("eos_token")),
            control_tokens=[token.content for token in added if token.special],
            own_tokens=[token.content for token in added],
            joint=joint_for(self._tokenizer.normalizer),
        )
        ends = self._configured("eos_token_id")
        #: Tokens that end a reply.
        self.end_ids = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for."""
        found = self.config.get("max_position_embeddings") or self.config.get("n_positions")
        return None if found is None else int(found)

    @property
    def start_id(self) -> int:
        """What the decoder of an encoder-decoder model begins with."""
        return int(self._configured("decoder_start_token_id") or 0)

    def label(self, number: int) -> str:
        """What a classifier's score of this number is for."""
        labels = self.config.get("id2label") or {}
        return str(labels.get(str(number), f"LABEL_{number}"))

    def encode(self, text: str, *, is_whole: bool = False) -> list[int]:
        """A whole text gets what the tokenizer puts around one; a rendered template has it."""
        return list(self._tokenizer.encode(text, add_special_tokens=is_whole).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _configured(self, name: str) -> Any:
        found = self._generation.get(name)
        return self.config.get(name) if found is None else found

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _template(self, configured: object) -> str | None:
        path = self._folder / "chat_template.jinja"
        if path.exists():
            return path.read_text()
        if isinstance(configured, list):  # several, by name
            configured = {each["name"]: each["template"] for each in configured}.get("default")
        return None if configured is None else str(configured)


def _content(token: Any) -> str:
    return str(token.get("content") or "") if isinstance(token, dict) else token or ""

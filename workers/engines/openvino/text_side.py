"""The text side of OpenVINO's models: tokenizer and chat template, in the worker's own process."""

import random
import re
from collections.abc import Callable, Sequence

from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.batching import TextSide
from turnmill.workers.engines.openvino.setup import openvino_path
from turnmill.workers.engines.text.chat_template import ChatTemplate
from turnmill.workers.engines.text.markers import WORD_JOINER
from turnmill.workers.engines.text.stops import REPLACEMENT
from turnmill.workers.vendor.openvino import openvino_genai

#: Tokens that OpenVINO GenAI's tokenizers of GGUF files give of a text, whatever the model's window
#: and `max_length` are: of a longer text they give the last ones. Seen in 2026.4.1.
MOST_GGUF_TOKENS = 8192

#: Where tokenizers of GGUF files part a text anyway: a letter ends, and no apostrophe follows.
_BORDER = re.compile(r"(?<=[^\W\d_])(?=[ \n,.;:!?，。；：！？、）)])")


def load_text(settings: EngineSettings) -> TextSide:
    tokenizer = openvino_genai.Tokenizer(str(openvino_path(settings)))
    control_tokens = _control_tokens(tokenizer)
    decode, bytes_of = _decoder(tokenizer, control_tokens)
    return TextSide(
        template=ChatTemplate(
            tokenizer.get_original_chat_template(),
            bos_token=tokenizer.get_bos_token(),
            eos_token=tokenizer.get_eos_token(),
            control_tokens=control_tokens,
            joint=_joint(tokenizer),
        ),
        encode=lambda text: _encode(tokenizer, text),
        decode=decode,
        bytes_of=bytes_of,
    )


def _joint(tokenizer: object) -> str:
    """As `joint_for`, of a tokenizer that does not show its normalizer."""
    is_dropped = _encode(tokenizer, f"a{WORD_JOINER}b") == _encode(tokenizer, "ab")
    return " " if is_dropped else WORD_JOINER


def _encode(tokenizer: openvino_genai.Tokenizer, text: str) -> list[int]:
    """All tokens of a text: one that may have been cut is encoded in halves."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = encoded.input_ids.data[0].tolist()
    if len(ids) != MOST_GGUF_TOKENS:
        return ids
    middle = len(text) // 2
    border = _BORDER.search(text, middle)
    # Where there is none, two tokens may differ from the whole's; no word is lost.
    at = border.start() if border else middle
    return _encode(tokenizer, text[:at]) + _encode(tokenizer, text[at:])


def _control_tokens(tokenizer: openvino_genai.Tokenizer) -> list[str]:
    """Tokens that look like control tokens and decode to nothing."""
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    return [
        word.decode()
        for word, token in vocabulary.items()
        if len(word) > 2
        and word[:1] + word[-1:] in (b"<>", b"[]")
        and not tokenizer.decode([token], skip_special_tokens=True)
    ]


def _decoder(
    tokenizer: openvino_genai.Tokenizer, control_tokens: Sequence[str]
) -> tuple[Callable[[list[int]], str], Callable[[int], bytes | None]]:
    """Tokens as text, and the bytes of one: by a table, if that says what the tokenizer says.

    The tokenizer's own way is the inference of a small model, on all cores, for each token.
    """
    vocabulary: dict[bytes, int] = tokenizer.get_vocab()
    table = {token: word for word, token in vocabulary.items()}
    table |= {vocabulary[word.encode()]: b"" for word in control_tokens}

    def by_table(ids: list[int]) -> str:
        return b"".join(map(table.__getitem__, ids)).decode(errors="replace")

    def by_model(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    chance = random.Random(0)
    samples = [chance.choices(list(table), k=length) for length in (1, 2, 20) for _ in range(100)]
    is_same = all(_whole(by_table(ids)) == _whole(by_model(ids)) for ids in samples)
    return (by_table, table.get) if is_same else (by_model, lambda _: None)


def _whole(text: str) -> str:
    """Without what stands for missing bytes, of which each decoder writes as many as it likes."""
    return text.replace(REPLACEMENT, "")

"""Encoder-decoder models in TensorFlow Serving's stand-in (`make test-tfserving`): what is exported
says what transformers says, and the engine keeps to what all engines keep to.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

# Run here with the engine of this file.
from .test_engine import (  # noqa: F401
    COUNTRIES,
    STORY,
    test_a_greedy_reply_is_repeatable,
    test_a_prompt_that_leaves_no_room_is_refused,
    test_a_reader_who_leaves_harms_nobody,
    test_a_reply_comes_in_chunks_and_only_the_last_one_says_why_it_ended,
    test_a_reply_ends_before_a_stop_string,
    test_a_reply_ends_with_the_context_window,
    test_a_reply_goes_on_the_same_wherever_it_was_cut,
    test_a_sampled_reply_is_repeatable_with_its_seed,
    test_a_user_cannot_speak_as_the_system,
    test_an_abort_ends_the_reply_within_two_tokens,
    test_an_aborted_turn_is_not_begun,
    test_closing_tells_those_who_wait_and_leaves_no_thread,
    test_half_a_stop_string_at_the_end_is_still_said,
    test_many_threads_at_once_get_their_own_reply,
    test_odd_input_meets_an_error_of_ours_or_none,
    test_usage_is_exact,
)

pytestmark = pytest.mark.needs("tfserving")

SPECIAL = ("<pad>", "</s>", "<unk>")
NAMES = ("pad_token", "eos_token", "unk_token")
CAPITALS = "What is the capital of " + " ".join(f"{country}?" for country in COUNTRIES)
#: Whole words: what a random model says is then read again as it was said.
WORDS = sorted({*STORY.split(), *CAPITALS.split(), *(f"word{each}" for each in range(200))})
CONTEXT_WINDOW = 512
#: The first T5, and T5 v1.1 with another number of layers for each side.
KINDS: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5-v1.1": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_decoder_layers": 1,
    },
}
#: Short, and longer than the 128 tokens up to which T5 tells distances apart.
TEXTS = ("word1 word2", STORY, CAPITALS, " ".join(f"word{each}" for each in range(200)))


def save_tokenizer(folder: Path) -> None:
    """As T5's: a space is part of the word that follows it, and `</s>` ends every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"▁{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(NAMES, SPECIAL, strict=True))
    )
    fast.save_pretrained(folder)


def save(kind: str, folder: Path, seed: int = 1) -> Path:
    """A tiny checkpoint that speaks by chance, and never says what has no text."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        # Small weights choose tokens by hardly more than rounding.
        initializer_factor=4.0,
        n_positions=CONTEXT_WINDOW,
        **KINDS[kind],
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        if not config.scale_decoder_outputs:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
        model.lm_head.weight[[SPECIAL.index("<pad>"), SPECIAL.index("<unk>")]] = 0
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, export_to_tfserving: Callable[..., None]
) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("t5")
    found = {kind: save(kind, base / "checkpoints" / kind) for kind in KINDS}
    for kind, checkpoint in found.items():
        export_to_tfserving(checkpoint, base / kind)
    return {kind: base / kind / "1" / "assets.extra" for kind in KINDS} | {
        f"{kind} weights": checkpoint for kind, checkpoint in found.items()
    }


@pytest.fixture(scope="module")
def url(checkpoints: dict[str, Path], start_tfserving: Callable[..., Any]) -> str:
    models = [f"{kind}={checkpoints[kind].parents[1]}" for kind in KINDS]
    return str(start_tfserving(*(part for each in models for part in ("--model", each))).url)


@pytest.fixture(scope="module")
def start_engine(url: str, checkpoints: dict[str, Path]) -> Iterator[Callable[[str], Engine]]:
    """`start_engine(kind)`: with what the export put beside the model."""
    engines: list[Engine] = []

    def start(kind: str) -> Engine:
        engines.append(make(url, kind, checkpoints[kind]))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def make(url: str, kind: str, folder: Path) -> Engine:
    settings = {"name": "tfserving", "endpoints": (url,), "silence_s": 120, "remote_model": kind}
    return create_engine(EngineSettings.model_validate(settings | {"model": str(folder)}))


# What the engine suite asks for.


@pytest.fixture(scope="module")
def make_engine(url: str, checkpoints: dict[str, Path]) -> Callable[[], Engine]:
    return lambda: make(url, "t5-v1.1", checkpoints["t5-v1.1"])


@pytest.fixture(scope="module")
def engine(start_engine: Callable[[str], Engine]) -> Engine:
    return start_engine("t5-v1.1")


def reply(engine: Engine, *messages: Message) -> list[Chunk]:
    params = GenerationParams(temperature=0, max_tokens=24).over(DEFAULT_PARAMS)
    return list(engine.generate(Prompt(messages), params, Abort()))


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_greedy_reply_is_that_of_transformers_token_for_token(
    start_engine: Callable[[str], Engine], checkpoints: dict[str, Path], kind: str
) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    path = checkpoints[f"{kind} weights"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32)
    engine = start_engine(kind)
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, 1:].tolist()
        chunks = reply(engine, user(text))
        ended = ids[-1] == tokenizer.eos_token_id
        said = tokenizer.convert_tokens_to_ids([f"▁{word}" for word in text_of(chunks).split()])
        assert said == (ids[:-1] if ended else ids)
        assert sum(chunk.token_count for chunk in chunks) == len(ids)
        assert chunks[-1].finish_reason == ("stop" if ended else "length")


def test_the_last_user_message_is_asked_after_the_instructions(engine: Engine) -> None:
    """Without a template the model knows no dialogue."""
    instructions = Message(role=Role.SYSTEM, content="word1 word2")
    before = (user("word3"), Message(role=Role.ASSISTANT, content="word4"))
    asked = reply(engine, instructions, *before, user("word5"))
    assert asked == reply(engine, user("word1 word2 word5"))
    assert asked != reply(engine, user("word5"))


def test_turns_that_are_put_together_do_not_change_each_other(
    url: str, checkpoints: dict[str, Path]
) -> None:
    """As TensorFlow Serving puts them together: padded at the end, prompts and replies."""
    prompts, replies = [[5, 6, 7, 1], [9] * 150 + [1]], [[0, 11, 12, 13, 14], [0]]

    def predict(rows: list[int]) -> list[list[int]]:
        def padded(lists: list[list[int]]) -> list[list[int]]:
            longest = max(len(lists[row]) for row in rows)
            return [(lists[row] + [8] * longest)[:longest] for row in rows]

        inputs = {
            "input_ids": padded(prompts),
            "length": [len(prompts[row]) for row in rows],
            "decoder_input_ids": padded(replies),
            "decoder_length": [len(replies[row]) for row in rows],
            "limit": [8] * len(rows),
            "temperature": [0.0] * len(rows),
            "top_p": [1.0] * len(rows),
            "seed": [[1, 2]] * len(rows),
        }
        body = {"signature_name": "generate", "inputs": inputs}
        found = httpx.post(f"{url}/v1/models/t5-v1.1:predict", json=body, timeout=120)
        return [[each for each in row if each >= 0] for row in found.json()["outputs"]]

    assert predict([0, 1]) == predict([0]) + predict([1])

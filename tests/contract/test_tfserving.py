"""TensorFlow Serving's stand-in with real SavedModels (`make test-tfserving`): what is exported
says what transformers says; versions and labels; a replica that dies, one that is not ready yet.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from turnmill.schemas.errors import EngineUnavailable
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.turn.abort import Abort

pytestmark = pytest.mark.needs("tfserving")

MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()
MESSAGES = (Message(role=Role.USER, content="Tell me of the sea, and of ships."),)
LABELS = {0: "sea", 1: "land", 2: "air"}
#: Small weights choose tokens by hardly more than rounding.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tfserving")


def save(kind: str, seed: int, folder: Path) -> Path:
    """A tiny checkpoint with the default model's tokenizer; chat models speak by chance."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES, id2label=LABELS)
    getattr(transformers, kind)(config).save_pretrained(folder)
    source = Path(prepare_model(EngineSettings(models_dir=MODELS_DIR), "safetensors"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(base: Path, export_to_tfserving: Callable[..., None]) -> dict[str, Path]:
    """Versions 1 and 2 of a chat model, and a classifier."""
    found = {}
    for name, kind, version in (
        ("chat-1", "LlamaForCausalLM", 1),
        ("chat-2", "LlamaForCausalLM", 2),
        ("moods-1", "LlamaForSequenceClassification", 1),
    ):
        found[name] = save(kind, version, base / "checkpoints" / name)
        export_to_tfserving(found[name], base / name.partition("-")[0], version)
    return found


@pytest.fixture(scope="module")
def arguments(base: Path, checkpoints: dict[str, Path]) -> list[str]:
    models = ["--model", f"chat={base / 'chat'}", "--model", f"moods={base / 'moods'}"]
    return [*models, "--label", "stable=1", "--label", "canary=2"]


@pytest.fixture(scope="module")
def url(arguments: list[str], start_tfserving: Callable[..., Any]) -> str:
    return str(start_tfserving(*arguments).url)


@pytest.fixture
def make_engine(checkpoints: dict[str, Path]) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(*endpoints: str, **settings: Any) -> Engine:
        settings = {"remote_model": "chat", "model": str(checkpoints["chat-1"])} | settings
        settings |= {"name": "tfserving", "endpoints": endpoints, "silence_s": 120}
        engines.append(create_engine(EngineSettings.model_validate(settings)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def reply(engine: Engine, max_tokens: int = 24) -> Iterator[Chunk]:
    params = GenerationParams(temperature=0, max_tokens=max_tokens).over(DEFAULT_PARAMS)
    return iter(engine.generate(Prompt(MESSAGES), params, Abort()))


def text_of(chunks: Iterator[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def greedy_text(checkpoint: Path, max_tokens: int = 24) -> str:
    """What plain transformers says."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    chat = [{"role": "user", "content": MESSAGES[0].content}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return str(tokenizer.decode(ids[0, length:], skip_special_tokens=True))


@pytest.mark.parametrize(
    ("chosen", "version"), [(None, 2), ("1", 1), ("2", 2), ("stable", 1), ("canary", 2)]
)
def test_the_chosen_version_says_what_transformers_says(
    url: str,
    make_engine: Callable[..., Engine],
    checkpoints: dict[str, Path],
    chosen: str | None,
    version: int,
) -> None:
    engine = make_engine(url, remote_version=chosen)
    engine.start()
    assert text_of(reply(engine)) == greedy_text(checkpoints[f"chat-{version}"])
    assert greedy_text(checkpoints["chat-1"]) != greedy_text(checkpoints["chat-2"])


@pytest.mark.parametrize(
    "wrong", [{"remote_version": "7"}, {"remote_version": "beta"}, {"remote_model": "chess"}]
)
def test_what_the_server_does_not_have_keeps_the_engine_from_starting(
    url: str, make_engine: Callable[..., Engine], wrong: dict[str, str]
) -> None:
    with pytest.raises(EngineUnavailable, match=url):
        make_engine(url, **wrong).start()


def test_a_classifier_says_the_label_that_transformers_says(
    url: str, make_engine: Callable[..., Engine], checkpoints: dict[str, Path]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = checkpoints["moods-1"]
    ids = AutoTokenizer.from_pretrained(path)(MESSAGES[0].content, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    label = LABELS[int(model(input_ids=ids["input_ids"]).logits.argmax())]
    engine = make_engine(url, remote_model="moods", model=str(path))
    engine.start()
    assert text_of(reply(engine)) == label


def predictions_of(url: str) -> int:
    return int(httpx.get(f"{url}/monitoring/prometheus/metrics").text.split()[-1])


def test_a_turn_whose_replica_is_killed_goes_on_at_the_other(
    make_engine: Callable[..., Engine],
    start_tfserving: Callable[..., Any],
    arguments: list[str],
    checkpoints: dict[str, Path],
) -> None:
    peers = [start_tfserving(*arguments) for _ in range(2)]
    engine = make_engine(*(peer.url for peer in peers), remote_version="1")
    engine.start()
    chunks = reply(engine, max_tokens=48)
    text = next(chunks).text
    asked = [predictions_of(peer.url) for peer in peers]
    assert sorted(asked) == [0, 1]
    peers[asked.index(1)].kill()
    text += text_of(chunks)
    assert predictions_of(peers[asked.index(0)].url) > 0
    assert text == greedy_text(checkpoints["chat-1"], 48)


def test_an_abort_costs_one_block_at_most(url: str, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(url)
    engine.start()
    params = GenerationParams(temperature=0, max_tokens=200).over(DEFAULT_PARAMS)
    abort = Abort()
    chunks = iter(engine.generate(Prompt(MESSAGES), params, abort))
    next(chunks)
    asked = predictions_of(url)
    abort.set()
    assert list(chunks) == []
    assert predictions_of(url) == asked
    assert not any(engine.held.values())


def test_a_replica_that_still_loads_gets_its_turns_when_it_is_ready(
    make_engine: Callable[..., Engine],
    start_tfserving: Callable[..., Any],
    arguments: list[str],
    eventually: Callable[..., None],
) -> None:
    peer = start_tfserving(*arguments, is_idle=True)
    engine = make_engine(peer.url)
    with pytest.raises(EngineUnavailable, match="LOADING"):
        engine.start()
    peer.load()

    def starts() -> bool:
        try:
            engine.start()
        except EngineUnavailable:
            return False
        return True

    eventually(starts, timeout_s=120)
    assert text_of(reply(engine))

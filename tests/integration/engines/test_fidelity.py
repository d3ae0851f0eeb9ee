"""The engines say what the model says: measured against plain `generate` in full precision."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.registry import REQUIREMENTS, create_engine
from turnmill.workers.engines.text.pieces import by_pieces
from turnmill.workers.turn.abort import Abort

torch = pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
transformers = pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")

MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()
MAX_TOKENS = 16
#: Engines in memory at once.
MOST_LOADED = 2
QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colors.",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Explain what a message queue is in one sentence.",
    "Translate 'good morning' into Spanish.",
    "Give me a word that rhymes with cat.",
    "Who wrote Romeo and Juliet?",
    "List two fruits.",
    "What color is the sky on a clear day?",
    "Say hello politely.",
)


def messages(question: str) -> tuple[Message, ...]:
    return (Message(role=Role.USER, content=question),)


def settings_for(name: str, dtype: str, **others: str) -> EngineSettings:
    return EngineSettings.model_validate(
        {"name": name, "dtype": dtype, "device": "cpu", "models_dir": MODELS_DIR, **others}
    )


def assert_greedy(model: Any, replies: list[str]) -> None:
    """Fail unless `model.generate` would say each reply: in one pass over prompt and reply, every
    token is the likeliest after those before it.
    """
    path = prepare_model(settings_for("transformers", "float32"), "safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    rows, said = [], []
    for question, reply in zip(QUESTIONS, replies, strict=True):
        ids = tokenizer(reply)["input_ids"]
        # One that is shorter came to its end.
        said.append([*ids, tokenizer.eos_token_id][:MAX_TOKENS])
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        rows.append({"input_ids": prompt + said[-1]})
    inputs = tokenizer.pad(rows, return_tensors="pt")
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**inputs, position_ids=positions, logits_to_keep=MAX_TOKENS + 1).logits
    likeliest = logits.argmax(-1).tolist()
    assert [row[-len(ids) - 1 : -1] for row, ids in zip(likeliest, said, strict=True)] == said


def together(engine: Engine) -> list[str]:
    params = GenerationParams(temperature=0, max_tokens=MAX_TOKENS).over(DEFAULT_PARAMS)

    def reply(question: str) -> str:
        chunks = engine.generate(Prompt(messages(question)), params, Abort())
        return "".join(chunk.text for chunk in chunks)

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(reply, QUESTIONS))


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[..., Engine]]:
    """`load("openvino", "float32")`: an engine, which stays loaded with one other."""
    loaded: dict[Any, Engine] = {}

    def load(name: str, dtype: str, **others: str) -> Engine:
        wanted = (name, dtype, *others.items())
        if wanted not in loaded:
            if len(loaded) == MOST_LOADED:
                loaded.pop(next(iter(loaded))).close()
            module, extra = REQUIREMENTS[name]
            pytest.importorskip(module, reason=f"pip install 'turnmill[{extra}]'")
            engine = create_engine(settings_for(name, dtype, **others))
            engine.start()
            loaded[wanted] = engine
        return loaded[wanted]

    yield load
    for engine in loaded.values():
        engine.close()


@pytest.fixture(scope="module")
def references(load: Callable[..., Engine]) -> list[str]:
    """Greedy replies of the plain model, with the same 16-bit weights."""
    replies = together(load("transformers", "float32"))
    path = prepare_model(settings_for("transformers", "float32"), "safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert_greedy(model, replies)
    return replies


@pytest.mark.parametrize(
    "name",
    ["transformers", "openvino", pytest.param("vllm", marks=pytest.mark.needs("vllm"))],
)
def test_in_full_precision_a_batched_reply_equals_plain_generate(
    load: Callable[..., Engine], references: list[str], name: str
) -> None:
    assert together(load(name, "float32")) == references


@pytest.mark.parametrize(("name", "dtype"), [("transformers", "float32"), ("openvino", "float32")])
def test_a_conversation_finds_its_past_in_the_cache(
    load: Callable[..., Engine], name: str, dtype: str
) -> None:
    """What `cached_tokens` counts: nothing at first, then all but the end of the past."""
    engine = load(name, dtype)
    params = GenerationParams(temperature=0, max_tokens=MAX_TOKENS).over(DEFAULT_PARAMS)
    past = messages(" ".join(QUESTIONS))
    # Other tests' prompts begin like this one.
    prompt = Prompt(past, cache_namespace="of this test")
    chunks = list(engine.generate(prompt, params, Abort()))
    assert chunks[-1].cached_tokens == 0
    reply = Message(role=Role.ASSISTANT, content="".join(chunk.text for chunk in chunks))
    again = replace(prompt, messages=(*past, reply, *messages("And then?")))
    *_, last = engine.generate(again, params, Abort())
    assert chunks[-1].prompt_tokens - 32 <= last.cached_tokens < last.prompt_tokens


def test_by_default_replies_begin_alike(load: Callable[..., Engine], references: list[str]) -> None:
    """Measured: all first words alike, 9 of 11 replies of 24 tokens identical."""
    replies = together(load("openvino", "auto"))
    pairs = list(zip(replies, references, strict=True))
    assert sum(ours.split()[0] == theirs.split()[0] for ours, theirs in pairs) >= 10
    assert sum(ours == theirs for ours, theirs in pairs) >= 6


def test_8_bit_weights_begin_alike(load: Callable[..., Engine], references: list[str]) -> None:
    """OpenVINO reads a file that was rewritten to Q8_0. Measured: 8 to 10 of 11 first words alike.

    Which prompts share a step, and so how sums are rounded, depends on what else the machine does.
    """
    replies = together(load("openvino", "auto", quantization="int8"))
    pairs = list(zip(replies, references, strict=True))
    assert sum(ours.split()[0] == theirs.split()[0] for ours, theirs in pairs) >= 7


@pytest.mark.filterwarnings("default")
def test_4_bit_weights_are_read_exactly(load: Callable[..., Engine]) -> None:
    """OpenVINO against transformers, which computes the same file's weights in 32 bits.

    Its reading of another 4-bit type, Q4_1, leaves 1 of these 11 replies as it was.
    """
    exact = {"quantization": "int4", "kv_cache_dtype": "float32", "prefix_cache": "no"}
    settings = settings_for("openvino", "float32", **exact)
    file = Path(prepare_model(settings, "gguf-q4_0"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    assert_greedy(model, together(load("openvino", "float32", **exact)))


def test_templates_are_rendered_as_transformers_does() -> None:
    engine = pytest.importorskip("turnmill.workers.engines.torch.engine")
    settings = settings_for("transformers", "float32")
    text = engine.load_text(settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepare_model(settings, "safetensors"))
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert text.encode(text.template.render(messages(question))) == ids


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("transformers", "torch")])
def test_a_prompt_in_pieces_has_the_tokens_of_the_whole(name: str, package: str) -> None:
    module = pytest.importorskip(f"turnmill.workers.engines.{package}.engine")
    text = module.load_text(settings_for(name, "auto"))
    seen: list[str] = []

    def counted(words: str) -> Any:
        seen.append(words)
        return text.encode(words)

    encode = by_pieces(counted, text.template.control_tokens)
    said = ["It costs 5 € \n", " \n\n  two", "née 日本語 🙂‍↔️", "<|im_end|>", "", "\ta\r\n", "I'll"]
    past: tuple[Message, ...] = ()
    for number, question in enumerate([*QUESTIONS, *said]):
        past += messages(question)
        whole = text.template.render(past, prefix=said[number % len(said)])
        seen.clear()
        assert encode(whole) == text.encode(whole)
        assert number == 0 or len(seen) <= 2, "the new message, and the reply that has begun"

"""A model in vLLM that sees: a tiny Idefics3 with random weights, on the CPU (`make test-vllm`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integration.engines.vision_models import IMAGE_TOKENS, make_idefics3
from tests.integration.media.conftest import MakeSite
from tests.integration.media.making import data_url, image_part, saved
from turnmill.schemas.content import MAX_IMAGES, MediaPart, TextPart
from turnmill.schemas.errors import ContextOverflow, InvalidInput
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.engines.registry import create_engine
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.abort import Abort

pytestmark = pytest.mark.needs("vllm")

WINDOW = 512
QUESTION = "What is this?"


def picture(color: str, width: int = 300, height: int = 200) -> bytes:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste(color, (0, 0, width // 2, height))
    return saved(image)


RED, BLUE = picture("red"), picture("blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_idefics3(tmp_path_factory.mktemp("models") / "tiny-idefics3")


def settings_of(model: Path) -> dict[str, Any]:
    return {
        "name": "vllm",
        "model": str(model),
        "device": "cpu",
        "dtype": "float32",
        "context_window": WINDOW,
        "max_batch_size": 2,
        "kv_cache_gib": 0.1,
        "prefill_tokens": 32,
        "models_dir": str(model.parent),
    }


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    engine = create_engine(EngineSettings.model_validate(settings_of(model)))
    engine.start()
    yield engine
    engine.close()


def ask(*parts: str | bytes, prefix: str = "", namespace: str = "") -> Prompt:
    content = tuple(
        TextPart(text=part)
        if isinstance(part, str)
        else MediaPart.model_construct(type="image", file_id="file_1", url=data_url(part))
        for part in parts
    )
    message = Message.model_construct(role=Role.USER, content=content)
    return Prompt((message,), prefix, cache_namespace=namespace)


def reply(engine: Engine, prompt: Prompt, **values: object) -> list[Chunk]:
    given = GenerationParams.model_validate({"temperature": 0, "max_tokens": 12, **values})
    return list(engine.generate(prompt, given.over(DEFAULT_PARAMS), Abort()))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def logprobs_of(engine: Engine, prompt: Prompt) -> list[float]:
    chunks = reply(engine, prompt, logprobs=3, max_tokens=4)
    return [top for chunk in chunks for token in chunk.logprobs for _, top in token.top]


def test_a_checkpoint_that_sees_says_so(engine: Engine) -> None:
    assert engine.capabilities.accepts == {"text", "image"}


def test_a_reply_depends_on_the_image(engine: Engine) -> None:
    red, blue, none = (logprobs_of(engine, ask(QUESTION, *images))
                       for images in ([RED], [BLUE], []))  # fmt: skip
    assert red == pytest.approx(logprobs_of(engine, ask(QUESTION, RED)), abs=1e-4)
    for other in (blue, none):
        assert red != pytest.approx(other, abs=1e-2)


def test_two_images_are_seen_in_their_order(engine: Engine) -> None:
    first, second = (logprobs_of(engine, ask(QUESTION, *images))
                     for images in ([RED, BLUE], [BLUE, RED]))  # fmt: skip
    assert first != pytest.approx(second, abs=1e-2)


def test_the_tokens_of_images_count(engine: Engine) -> None:
    plain = engine.count_tokens(ask(QUESTION))
    for images in ([RED], [RED, BLUE]):
        prompt = ask(QUESTION, *images)
        counts = {engine.count_tokens(prompt) for _ in range(2)}
        counts.add(reply(engine, prompt)[-1].prompt_tokens)
        assert counts == {plain + len(images) * IMAGE_TOKENS}


def test_an_image_that_leaves_no_room_is_refused(engine: Engine) -> None:
    text = "x" * (WINDOW - engine.count_tokens(ask("")) - IMAGE_TOKENS)
    assert reply(engine, ask(text))[-1].finish_reason
    with pytest.raises(ContextOverflow, match=f"The prompt has {WINDOW} tokens"):
        reply(engine, ask(text, RED))


def test_more_images_than_a_prompt_may_have_are_named(engine: Engine) -> None:
    images = [picture("green", 40 + number) for number in range(MAX_IMAGES + 1)]
    named = ask("[image]", *images[1:])
    assert engine.count_tokens(ask(*images)) == engine.count_tokens(named)
    assert logprobs_of(engine, ask(*images)) == pytest.approx(logprobs_of(engine, named), abs=1e-4)


@pytest.mark.parametrize("data", [b"no image", RED[: len(RED) // 2]], ids=["text", "cut"])
def test_an_image_that_cannot_be_decoded_is_refused(engine: Engine, data: bytes) -> None:
    for prompt in (ask(QUESTION, data), ask(QUESTION, RED, data)):
        with pytest.raises(InvalidInput, match="cannot be decoded"):
            reply(engine, prompt)


def test_a_later_attempt_continues_the_reply_to_the_same_image(engine: Engine) -> None:
    whole = reply(engine, ask(QUESTION, RED), max_tokens=24)
    said = text_of(whole)
    begun = said[: len(said) // 2]
    rest = reply(engine, ask(QUESTION, RED, prefix=begun), max_tokens=24 - len(begun))
    assert begun + text_of(rest) == said
    assert rest[-1].prompt_tokens == whole[-1].prompt_tokens + len(begun)


def test_who_spells_the_mark_of_an_image_adds_none(engine: Engine) -> None:
    """The image belongs to its own mark, and the spelled one is text: a token a letter."""
    prompt = ask("<image>", RED)
    assert reply(engine, prompt)[-1].prompt_tokens == engine.count_tokens(ask("a" * 7, RED))


def test_tenants_do_not_find_each_other_s_images(engine: Engine) -> None:
    image = picture("yellow")
    cached = [
        reply(engine, ask(QUESTION + " Tell me all.", image, namespace=namespace))[-1].cached_tokens
        for namespace in ("one", "one", "two", "two")
    ]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > IMAGE_TOKENS


def test_what_vllm_remembers_of_an_image_has_its_tenant_s_id(engine: Any) -> None:
    """Its cache of embeddings has no other key."""
    model = engine._loaded()
    url, ids = data_url(RED), [4, model.text.encode("<image>")[0], 5]
    ids_of = [
        model.facts.eyes.look(ids, [url], namespace).inputs["mm_hashes"]["image"]
        for namespace in ("one", "one", "two")
    ]
    assert ids_of[0] == ids_of[1] != ids_of[2]
    assert model.scheduler._llm.renderer.mm_processor_cache is None


def test_an_image_of_another_length_has_another_id(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models look at several images less closely (DeepSeek-VL2)."""
    model = engine._loaded()
    url, ids = data_url(RED), [4, model.text.encode("<image>")[0], 5]

    def id_of() -> str:
        seen = model.facts.eyes.look(ids, [url], "lengths")
        (id,) = seen.inputs["mm_hashes"]["image"]
        return str(id)

    whole = id_of()
    assert id_of() == whole
    monkeypatch.setattr("turnmill.workers.engines.vllm.eyes.image_lengths", lambda _: [9])
    assert id_of() != whole


def test_images_of_a_call_reach_the_model(make_site: MakeSite, model: Path) -> None:
    """From the API through the storage and a worker to vLLM, and the reply back."""
    site = make_site(engine=settings_of(model) | {"served_name": "tiny-idefics3"})
    uploaded = site.upload(RED, "red.png").id

    def answer(*parts: Any) -> Any:
        message: Any = {"role": "user", "content": [{"type": "text", "text": QUESTION}, *parts]}
        return site.openai.chat.completions.create(
            model="tiny-idefics3",
            messages=[message],
            temperature=0,
            max_tokens=8,
            logprobs=True,
        )

    def seen(completion: Any) -> list[float]:
        return [token.logprob for token in completion.choices[0].logprobs.content]

    with InlineWorker(site.settings):
        plain, red, blue = answer(), answer(image_part(RED)), answer(image_part(BLUE))
        again = answer({"type": "image_url", "image_url": {"url": uploaded}})
    assert red.usage.prompt_tokens == plain.usage.prompt_tokens + IMAGE_TOKENS
    assert again.choices[0].message.content == red.choices[0].message.content
    assert seen(again) == pytest.approx(seen(red), abs=1e-4)
    assert seen(blue) != pytest.approx(seen(red), abs=1e-2)

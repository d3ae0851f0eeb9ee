"""What a model that sees is shown, and what that takes of the context window."""

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.integration.media.conftest import BOT, MakeSite
from tests.integration.media.making import bomb, image_part, photographed, saved
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.files.images import read_pixels
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.engines.local.seeing import images_of
from turnmill.workers.testing import InlineWorker


def test_turns_are_dropped_by_what_their_images_take(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine counts the images themselves, and not references to files."""
    shown: list[int] = []
    generate = EchoEngine.generate

    def count(_: EchoEngine, prompt: Prompt) -> int:
        return 100 * len(images_of(prompt.messages))

    def noted(engine: EchoEngine, prompt: Prompt, *rest: Any) -> Iterator[Chunk]:
        shown.append(len(images_of(prompt.messages)))
        return generate(engine, prompt, *rest)

    monkeypatch.setattr(EchoEngine, "count_tokens", count)
    monkeypatch.setattr(EchoEngine, "generate", noted)
    site = make_site(
        engine={"name": "echo", "model": BOT, "echo_can_see": True, "context_window": 320}
    )
    with InlineWorker(site.settings):
        for number in range(5):
            message: Any = {"role": "user", "content": [image_part(photographed(str(number)))]}
            site.openai.chat.completions.create(
                model=BOT,
                messages=[message],
                max_tokens=10,
                extra_headers={"X-Turnmill-Conversation": "mine"},
            )
    assert shown[:3] == [1, 2, 3]
    assert len(shown) == 5 and 1 <= min(shown[3:]) <= max(shown[3:]) <= 3


@pytest.mark.parametrize("size", [(2000, 1000), (1000, 2000), (40, 2048), (60, 30)])
def test_an_image_is_scaled_to_the_pixels_that_a_model_is_to_see(size: tuple[int, int]) -> None:
    most = 128 * 128
    shown = read_pixels(saved(Image.new("RGBA", size, "red")), most)
    assert shown.mode == "RGBA"
    assert shown.width * shown.height <= most
    assert shown.size == size or shown.width * shown.height > most * 0.9
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.2)


@pytest.mark.parametrize("size", [(2048, 1), (1, 2048), (2047, 2)])
def test_a_line_of_pixels_is_scaled_too(size: tuple[int, int]) -> None:
    shown = read_pixels(saved(Image.new("RGB", size, "red")), 1024)
    assert 900 < shown.width * shown.height <= 1024


def test_an_image_larger_than_what_is_stored_is_not_decoded() -> None:
    with pytest.raises(InvalidInput, match="pixels"):
        read_pixels(bomb(4096), 128 * 128)

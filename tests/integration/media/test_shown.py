"""What images take of the context window."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.media.conftest import BOT, MakeSite
from tests.integration.media.making import image_part, photographed
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

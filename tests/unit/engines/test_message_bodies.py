"""Messages as servers of OpenAI's chat completions get them."""

from turnmill.schemas.content import MediaPart, TextPart
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import Message, Role
from turnmill.workers.engines.base import Prompt
from turnmill.workers.engines.openai_http.engine import IMAGE_TOKENS, OpenAIServer
from turnmill.workers.engines.openai_http.tools import message_body

URL = "data:image/png;base64,AAAA"


def message(*parts: TextPart | MediaPart) -> Message:
    return Message.model_construct(role=Role.USER, content=parts, tool_calls=(), tool_call_id=None)


def test_an_image_is_sent_with_its_bytes_and_what_has_none_by_its_name() -> None:
    shown = MediaPart.model_construct(type="image", file_id="file_0", url=URL)
    gone = MediaPart(type="image", file_id="file_1")
    body = message_body(message(TextPart(text="See"), shown, gone))
    assert body == {
        "role": "user",
        "content": [
            {"type": "text", "text": "See"},
            {"type": "image_url", "image_url": {"url": URL}},
            {"type": "text", "text": "[image]"},
        ],
    }
    assert message_body(message(TextPart(text="See"), gone))["content"] == "See\n[image]"


def test_images_take_room_in_the_context_window_before_and_after_they_have_bytes() -> None:
    server = OpenAIServer("http://127.0.0.1:1", EngineSettings(context_window=8192))
    counts = [
        server.count_tokens(Prompt((message(TextPart(text="See"), part),)))
        for part in (
            MediaPart(type="image", file_id="file_0"),
            MediaPart.model_construct(type="image", file_id="file_0", url=URL * 10_000),
        )
    ]
    server.close()
    assert counts[0] == counts[1] > IMAGE_TOKENS

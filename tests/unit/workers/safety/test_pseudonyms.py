"""A server reads pseudonyms, and the reply has what they stand for."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from turnmill.schemas.content import ToolCall
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt, ToolCallPiece
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.safety.pseudonyms import PseudonymousEngine
from turnmill.workers.turn.abort import Abort

pytest.importorskip("phonenumbers", reason="pip install 'turnmill[personal]'")

PHONE, OTHER, MAIL = "+49 30 123456", "13812345678", "ada@mail.example"
TEXT = f"Call {PHONE} or {OTHER}, write {MAIL}, then call {PHONE} again."
HIDDEN = "Call <PHONE_1> or <PHONE_2>, write <EMAIL_1>, then call <PHONE_1> again."


class Server(EchoEngine):
    """Repeats the last message, in pieces of a few characters, and keeps what it was sent."""

    def __init__(self, size: int = 3) -> None:
        super().__init__(EngineSettings())
        self.sent: list[Prompt] = []
        self.calls: tuple[ToolCallPiece, ...] = ()
        self._size = size

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.sent.append(prompt)
        text = prompt.messages[-1].text[len(prompt.prefix) :]
        for at in range(0, len(text), self._size):
            yield Chunk(text[at : at + self._size], 1)
        yield from (Chunk("", tool_calls=(piece,)) for piece in self.calls)
        yield Chunk("", finish_reason="stop")

    def count_tokens(self, prompt: Prompt) -> int:
        self.sent.append(prompt)
        return super().count_tokens(prompt)


def ask(server: Server, *messages: Message, prefix: str = "") -> list[Chunk]:
    engine = PseudonymousEngine(server)
    return list(engine.generate(Prompt(messages, prefix), GenerationParams(), Abort()))


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_server_reads_pseudonyms_and_the_reply_has_the_values(size: int) -> None:
    server = Server(size)
    chunks = ask(server, user(TEXT))
    assert server.sent[0].messages[0].text == HIDDEN
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert not [chunk for chunk in chunks if "PHONE" in chunk.text or "<" in chunk.text]
    assert sum(chunk.token_count for chunk in chunks) == -(-len(HIDDEN) // size)


def test_a_second_attempt_makes_the_same_pseudonyms_and_continues_the_reply() -> None:
    server, kept = Server(), TEXT[: TEXT.index("write")]
    said = ask(server, user("Hello"), user(TEXT), prefix=kept)
    assert server.sent[0].prefix == HIDDEN[: HIDDEN.index("write")]
    assert kept + "".join(chunk.text for chunk in said) == TEXT


def test_no_way_to_a_server_shows_personal_data() -> None:
    server = Server()
    call = ToolCall(id="c", name="dial", arguments=json.dumps({"number": PHONE}))
    messages = (
        Message(role=Role.SYSTEM, content=f"The shop is {MAIL}"),
        user(TEXT),
        Message(role=Role.ASSISTANT, content=f"Dialing {PHONE}", tool_calls=(call,)),
        Message(role=Role.TOOL, content=f"{OTHER} is busy", tool_call_id="c"),
    )
    ask(server, *messages)
    PseudonymousEngine(server).count_tokens(Prompt(messages))
    for prompt in server.sent:
        text = repr(prompt)
        assert not [value for value in (PHONE, OTHER, MAIL) if value in text]


def test_a_call_of_a_tool_has_the_values_though_its_arguments_come_in_pieces() -> None:
    server = Server()
    server.calls = (
        ToolCallPiece(0, "c", "dial", '{"number": "<PHO'),
        ToolCallPiece(0, arguments='NE_1>"}'),
    )
    *others, last = ask(server, user(TEXT))
    assert not [chunk for chunk in others if chunk.tool_calls]
    assert last.tool_calls == (ToolCallPiece(0, "c", "dial", json.dumps({"number": PHONE})),)


def test_a_name_that_a_text_has_already_stands_for_itself() -> None:
    server = Server()
    text = f"What is <PHONE_1>? Mine is {PHONE}; 3 < 4, <b>, <PHONE_"
    assert "".join(chunk.text for chunk in ask(server, user(text))) == text
    assert "Mine is <PHONE_2>" in server.sent[0].messages[0].text

"""Pseudonyms: a server reads `<PHONE_1>` in the place of a number, and the reply has the number.

They are made from the prompt alone, in the order of its texts, so that each attempt at a turn makes
the same ones.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from turnmill.schemas.safety.findings import Finding
from turnmill.schemas.safety.messages import with_text
from turnmill.schemas.safety.names import Names
from turnmill.schemas.safety.personal import find_personal
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Engine, Prompt, ToolCallPiece
from turnmill.workers.engines.text.markers import change_texts
from turnmill.workers.safety.guard import Guard
from turnmill.workers.safety.wrapped import REMEMBERED_TEXTS, WrappedEngine
from turnmill.workers.turn.abort import Abort

#: What may become a pseudonym: shorter than the longest name.
_BEGUN = re.compile(r"<[A-Z_]{0,20}\d{0,6}$")


class Pseudonyms:
    """The pseudonyms of one prompt; a filter of its reply, which puts the values back."""

    def __init__(self, prompt: Prompt, find: Callable[[str], Sequence[Finding]]) -> None:
        """`find`: what is to have a pseudonym.

        Raises:
            SettingsError: the extra `personal` is not installed.
        """
        self._names = Names(find, _texts(prompt))
        self.prompt = self._hidden(prompt)

    def _hidden(self, prompt: Prompt) -> Prompt:
        hide = self._names.hide
        messages = tuple(
            with_text(each, hide).model_copy(
                update={
                    "tool_calls": tuple(
                        call.model_copy(update={"arguments": hide(call.arguments)})
                        for call in each.tool_calls
                    )
                }
            )
            for each in prompt.messages
        )
        tools = tuple(
            each.model_copy(update={"description": each.description and hide(each.description)})
            for each in prompt.tools
        )
        kwargs = change_texts(dict(prompt.template_kwargs), hide)
        return replace(
            prompt,
            messages=messages,
            tools=tools,
            template_kwargs=kwargs,
            prefix=hide(prompt.prefix),
        )

    def open_at(self, text: str) -> int:
        begun = _BEGUN.search(text, max(0, len(text) - 30))
        return begun.start() if begun else len(text)

    def rewrite(self, text: str, before: str = "") -> str:
        return self._names.reveal(text)


class PseudonymousEngine(WrappedEngine):
    """Shows the engine inside no personal data of a known form."""

    def __init__(self, engine: Engine, regions: Sequence[str] = ()) -> None:
        super().__init__(engine)
        #: Each prompt of a turn, counted ones too, repeats the conversation's past.
        self._find = lru_cache(REMEMBERED_TEXTS)(partial(find_personal, regions=tuple(regions)))

    def changed(self, prompt: Prompt) -> Prompt:
        return Pseudonyms(prompt, self._find).prompt

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        pseudonyms = Pseudonyms(prompt, self._find)
        chunks = self._engine.generate(pseudonyms.prompt, params, abort)
        return Guard([pseudonyms], prompt.prefix).read(_with_whole_calls(chunks, pseudonyms))


def _with_whole_calls(chunks: Iterable[Chunk], pseudonyms: Pseudonyms) -> Iterator[Chunk]:
    """The chunks, with calls of tools on the last one: a name may come in pieces."""
    calls: dict[int, ToolCallPiece] = {}
    for chunk in chunks:
        for piece in chunk.tool_calls:
            before = calls.get(piece.index, ToolCallPiece(piece.index))
            calls[piece.index] = ToolCallPiece(
                piece.index,
                before.id + piece.id,
                before.name + piece.name,
                before.arguments + piece.arguments,
            )
        whole: tuple[ToolCallPiece, ...] = ()
        if chunk.finish_reason is not None:
            whole = tuple(
                replace(call, arguments=pseudonyms.rewrite(call.arguments))
                for _, call in sorted(calls.items())
            )
        yield replace(chunk, tool_calls=whole)


def _texts(prompt: Prompt) -> Iterator[str]:
    yield prompt.prefix
    for message in prompt.messages:
        yield message.text
        yield from (call.arguments for call in message.tool_calls)

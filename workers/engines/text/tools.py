"""Calls of tools in what a model writes, in the formats that models were trained to write them in.

A chat template shows the model its tools, and how to call one is part of what the model learned:
JSON objects with a name and arguments, between marks (Hermes, Qwen), after one (Mistral) or as the
whole reply (Llama). A template tells which by the marks that it writes itself.

https://huggingface.co/docs/transformers/chat_extras
https://github.com/NousResearch/Hermes-Function-Calling
https://docs.mistral.ai/capabilities/function_calling
https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1
"""

import json
import re
import secrets
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from turnmill.schemas.formats.calls import arguments_format, demanded_tools, kept_formats
from turnmill.schemas.turns import GenerationParams, Tool
from turnmill.workers.engines.base import Chunk, ToolCallPiece
from turnmill.workers.engines.text.call_form import CallForm
from turnmill.workers.engines.text.stops import StopFilter

#: Mistral's templates refuse ids that are not of so many letters and digits.
ID_LENGTH = 9
_ID_LETTERS = string.ascii_letters + string.digits

#: How the object of a call begins, but for spaces, and characters in which that shows, marks among
#: them.
_STARTS = tuple(f'{{"{key}"' for key in ("name", "arguments", "parameters", "type", "function"))
_LONGEST_START = 200

#: What a call is made to begin with.
_START = '{"name":'

#: Between two calls.
_BETWEEN = re.compile(r"[\s,;]*")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes its calls of tools."""

    name: str
    #: What a call begins with.
    openings: tuple[str, ...]
    #: What the model is given before the first object where it must call a tool.
    before: str = ""
    #: What stands between the objects of two calls.
    between: str = "; "
    #: What ends a reply whose calls began with `before`, where they cannot be read without it.
    after: str = ""
    #: The mark in a text behind which the model writes nothing but calls; empty: there is none.
    trigger: str = ""
    #: What ends the calls behind it. Where it is part of `between`, each call has a trigger.
    closing: str = ""
    #: What may stand around a call and is no part of it.
    marks: tuple[str, ...] = ()
    #: What the model calls a call's arguments.
    arguments: str = "arguments"
    #: What only the template and the model may write.
    reserved: tuple[str, ...] = ()

    def begun(self, name: str | None) -> str:
        """The beginning of a call of the tool with this name; of any, without one.

        It ends before a space, which is part of the next token in most vocabularies.
        """
        return f"{self.before}{_START}" + ("" if name is None else self._named(name).rstrip())

    def held(self, tools: Sequence[Tool], begun: str, *, is_one_call: bool) -> CallForm:
        """What a reply with this beginning is held to, for its calls to meet the tools' schemas."""
        return CallForm(
            calls=tuple((self._named(tool.name), arguments_format(tool)) for tool in tools),
            begun=begun.removeprefix(self.before).removeprefix(_START),
            between=None if is_one_call else f"{self.between}{_START}",
            after=self.after,
        )

    def triggered(self, tools: Sequence[Tool], *, is_one_call: bool) -> CallForm | None:
        """What a reply that may call is held to behind its trigger, as far as the tools' schemas
        can be kept to. None where the format has no trigger.
        """
        if not self.trigger:
            return None
        is_alone = is_one_call or self.between.startswith(self.closing)
        return CallForm(
            calls=tuple(
                (self._named(tool.name), format)
                for tool, format in zip(tools, kept_formats(tools), strict=True)
            ),
            begun="",
            between=None if is_alone else f"{self.between}{_START}",
            after=self.closing,
            trigger=self.trigger,
            lead=self.before.removeprefix(self.trigger) + _START,
            repeats=not is_one_call,
        )

    def _named(self, name: str) -> str:
        return f' {json.dumps(name, ensure_ascii=False)}, "{self.arguments}": '

    def parse_all(self, text: str, names: Iterable[str]) -> tuple[list[tuple[str, str]], str]:
        """Name and arguments (JSON) of each call, and the text around them.

        The text begins where a call may; others begin behind text. What begins like a call and is
        none is part of that text.
        """
        known, opening = frozenset(names), re.compile("|".join(map(re.escape, self.openings)))
        calls: list[tuple[str, str]] = []
        around, at = "", 0
        while at < len(text):
            found, end = self._parse(text, at, known)
            calls += found
            start, following = end if found else at, opening.search(text, end)
            at = following.start() if following else len(text)
            around += text[start:at]
        return calls, around

    def parse(self, text: str, names: Iterable[str]) -> tuple[list[tuple[str, str]], str]:
        """As `parse_all`, of calls without text between them.

        No call, and all of the text, if it is not in this format or calls an unknown tool.
        """
        calls, end = self._parse(text, 0, frozenset(names))
        return (calls, text[end:]) if calls else ([], text)

    def _parse(
        self, text: str, at: int, known: frozenset[str]
    ) -> tuple[list[tuple[str, str]], int]:
        """The calls from this position on, and where they end. Where there is none, the position
        from which on others may begin: behind the marks and the value here.
        """
        decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        calls: list[tuple[str, str]] = []
        end, at = at + 1, self._skip(text, at)
        while at < len(text):
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                break
            found = [_call(each) for each in (value if isinstance(value, list) else [value])]
            if not all(call and call[0] in known for call in found):
                break
            calls += filter(None, found)
            at = self._skip(text, end)
        return calls, at if calls else max(at, end)

    def may_be_call(self, text: str) -> bool:
        """Whether a text that begins with an opening may still become a call."""
        start = text[:_LONGEST_START]
        begun = re.sub(r"\s", "", start[self._skip(start, 0) :]).removeprefix("[")
        if not begun and len(text) > _LONGEST_START:
            return False
        return any(begun.startswith(each[: len(begun)]) for each in _STARTS)

    def _skip(self, text: str, at: int) -> int:
        """The position after marks and what stands between calls."""
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            mark = next((each for each in self.marks if text.startswith(each, at)), None)
            if mark is None:
                return at
            at += len(mark)


_HERMES_MARKS = ("<tool_call>", "</tool_call>")
#: Small models of the Qwen family write a fence of Markdown in the place of the mark.
HERMES = ToolFormat(
    "hermes",
    openings=("<tool_call>", "```json"),
    before="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    trigger="<tool_call>",
    closing="\n</tool_call>",
    marks=(*_HERMES_MARKS, "```json", "```"),
    reserved=(*_HERMES_MARKS, "<tool_response>", "</tool_response>", "<tools>", "</tools>"),
)
#: The mark is a control token, which is dropped when tokens become text.
MISTRAL = ToolFormat(
    "mistral",
    openings=("[TOOL_CALLS]", '[{"name":', '[{"arguments":'),
    before="[TOOL_CALLS] [",
    between=", ",
    after="]",
    trigger="[TOOL_CALLS]",
    closing="]",
    marks=("[TOOL_CALLS]", "]"),
    reserved=("[TOOL_CALLS]",),
)
LLAMA = ToolFormat(
    "llama",
    openings=('{"name":', '{"type": "function"', "<|python_tag|>"),
    marks=("<|python_tag|>",),
    reserved=("<|python_tag|>",),
    arguments="parameters",
)


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template asks for; None if it knows no tools, or a format that is not
    one of these.
    """
    if not re.search(r"\btools\b", template):
        return None
    if "<tool_call>" in template:
        # Qwen3-Coder and others write calls in XML within the same mark.
        return None if "<function=" in template or "<arg_key>" in template else HERMES
    if "[TOOL_CALLS]" in template:
        return None if "[ARGS]" in template else MISTRAL
    return LLAMA if '"parameters": dictionary of argument name' in template else None


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """What a turn offers its model, in the model's format."""

    form: ToolFormat
    names: tuple[str, ...]
    #: What the model is made to begin its reply with.
    begun: str = ""
    is_one_call: bool = False
    #: What the rest of it, or a call in its text, is held to, by engines that can.
    held: CallForm | None = None

    @classmethod
    def of(
        cls, form: ToolFormat | None, params: GenerationParams, *, can_hold: bool = True
    ) -> "OfferedTools | None":
        """None where nothing is offered. `can_hold`: whether the engine has grammars."""
        if form is None or not params.tools:
            return None
        demanded = demanded_tools(params)
        is_one_call = params.parallel_tool_calls is False
        if not demanded:
            names = tuple(tool.name for tool in params.tools)
            # A reply with a format is held to that, and calls nothing.
            may_call = can_hold and params.response_format is None
            held = form.triggered(params.tools, is_one_call=is_one_call) if may_call else None
            return cls(form, names, is_one_call=is_one_call, held=held)
        is_one_call |= params.tool_choice != "required"
        begun = form.begun(demanded[0].name if len(demanded) == 1 else None)
        held = form.held(demanded, begun, is_one_call=is_one_call)
        return cls(form, tuple(tool.name for tool in demanded), begun, is_one_call, held)

    def read(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks without the text of calls, which are whole on the last one.

        While a call is written, chunks without text are signs of life. What begins like a call and
        is none comes as text, at the end.
        """
        reader = _Reader(self)
        for chunk in chunks:
            yield reader.push(chunk) if chunk.finish_reason is None else reader.end(chunk)


class _Reader:
    def __init__(self, offered: OfferedTools) -> None:
        self._offered = offered
        self._openings = StopFilter(offered.form.openings)
        #: Text from the beginning of the first call on.
        self._calls = offered.begun
        self._token_count = 0

    def push(self, chunk: Chunk) -> Chunk:
        text, token_count = self._taken(chunk.text, chunk.token_count)
        return replace(chunk, text=text, token_count=token_count)

    def _taken(self, text: str, token_count: int) -> tuple[str, int]:
        """What may be shown of this text and of what was held back before, and its tokens."""
        shown, shown_count = "", 0
        while True:
            if self._calls:
                self._calls += text
                self._token_count += token_count
            else:
                piece = self._openings.push(text, token_count)
                shown, shown_count = shown + piece.text, shown_count + piece.token_count
                self._calls = self._openings.rest
            is_call = self._offered.begun or self._offered.form.may_be_call(self._calls)
            if not self._calls or is_call:
                return shown, shown_count
            # What was taken for a call is none; its end may be taken for another one.
            shown, text, token_count = shown + self._calls[0], self._calls[1:], self._token_count
            self._calls, self._token_count = "", 0
            self._openings = StopFilter(self._offered.form.openings)

    def end(self, last: Chunk) -> Chunk:
        """The last chunk, with the calls, and with the text that turns out to be none."""
        shown = self.push(replace(last, finish_reason=None))
        held = Chunk(self._calls, self._token_count)
        if not self._calls:
            held = self._openings.push("", 0, is_last=True)
        calls, text = self._offered.form.parse_all(held.text, self._offered.names)
        if self._offered.is_one_call:
            calls = calls[:1]
        if self._offered.begun:
            text = ""  # what its limit cut off of a call
        called = last.finish_reason == "stop" and bool(calls)
        return replace(
            last,
            text=shown.text + (text if text.strip() or not calls else ""),
            token_count=shown.token_count + held.token_count,
            finish_reason="tool_calls" if called else last.finish_reason,
            tool_calls=tuple(
                ToolCallPiece(index, new_call_id(), name, arguments)
                for index, (name, arguments) in enumerate(calls)
            ),
        )


def new_call_id() -> str:
    """An id for a call that a model's own format has none for."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))


def described(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """The tools as chat templates read them, which is as OpenAI describes them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON (RFC 8259, section 6)."""
    raise ValueError(name)


def _call(value: object) -> tuple[str, str] | None:
    """Name and arguments of a call, as JSON."""
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    called = function if isinstance(function, dict) else value
    name, arguments = called.get("name"), called.get("arguments", called.get("parameters", {}))
    if isinstance(arguments, str):  # some models write JSON within JSON
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)

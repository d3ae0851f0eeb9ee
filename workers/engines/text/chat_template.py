"""Messages to the one string that a chat model was trained on, by the model's own Jinja template.

Templates come with the model, so they run in Jinja's sandbox, set up as transformers sets it up
(`transformers/utils/chat_template_utils.py`). What marks a role, and control tokens, are broken in
messages' texts: whoever could spell them could speak as the system.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count, groupby
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from turnmill.schemas.content import MAX_IMAGES, MediaPart, TextPart, ToolCall, parts_of
from turnmill.schemas.errors import EngineFailure, InvalidInput
from turnmill.schemas.turns import Message, Tool
from turnmill.workers.engines.base import NO_VALUES, TemplateValues, refuse_template_kwargs
from turnmill.workers.engines.text.markers import (
    WORD_JOINER,
    breaker,
    change_texts,
    find_marks,
    unusual,
)
from turnmill.workers.engines.text.tools import described, format_of

#: For models without a template: not what they were trained on, but they understand it.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

#: For encoder-decoder models without a template, which were trained on one text and not on a
#: dialogue: the instructions say what is to be done ("translate English to German:"), and the last
#: user message to what.
TASK_TEMPLATE = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ ((messages | selectattr('role', 'equalto', 'system') | list) + asked[-1:])"
    " | map(attribute='content') | join(' ') }}"
)

#: Names that templates look up, and that no turn gives a value among its own.
_OURS = frozenset(("messages", "add_generation_prompt", "tools", "documents"))

#: What a template is tried with.
_PROBE, _IMAGE = "\ue000probe\ue001", {"type": "image"}

#: Texts without marks that are remembered, and characters of the longest of them.
REMEMBERED_TEXTS, LONGEST_TEXT = 2048, 1 << 14


class Refusal(TemplateError):
    """The template calls `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %}`: marks what the assistant says for training; renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """A compiled template."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Iterable[str] = (),
        own_tokens: Iterable[str] = (),
        joint: str = WORD_JOINER,
    ) -> None:
        """`own_tokens` of the vocabulary are no control tokens, and only the model may write them:
        `<think>`. `joint` breaks what a message may not spell.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
            "bos_token": bos_token,
            "eos_token": eos_token,
        }
        source = source or PLAIN_TEMPLATE
        self._template = environment.from_string(source)
        looked_up = find_undeclared_variables(environment.parse(source))
        #: Names that the template looks up and nobody has given a value yet.
        self._knows = looked_up - {*environment.globals, *_OURS}
        #: How its model calls tools; None where it cannot.
        self.tool_format = format_of(source) if "tools" in looked_up else None
        #: Longest first: where one begins like another, it is the longer one.
        self.control_tokens = sorted(
            {*control_tokens} - {""}, key=lambda token: (-len(token), token)
        )
        self._joint = joint
        #: Templates of models that see may show no text but in a list of parts.
        self._wants_parts = not self._shows(_PROBE) and self._shows([_text_part(_PROBE)])
        self._shows_images = False
        #: What stands for the nth image in a text; None: the template itself writes it.
        self._image_mark: Callable[[int], str | None] | None = None
        marks = unusual({*self.control_tokens, *own_tokens})
        self._marks = {*find_marks(self._render), *self._reserved(), *marks}
        self._break_marks = breaker(self._marks, joint)
        #: A conversation's past is part of each of its prompts.
        self._remembered = lru_cache(REMEMBERED_TEXTS)(self._made_safe)

    def render(
        self,
        messages: Sequence[Message],
        prefix: str = "",
        kwargs: TemplateValues = NO_VALUES,
        tools: Sequence[Tool] = (),
    ) -> str:
        """Render the prompt, with the opening of the reply and what the model said already.

        Raises:
            InvalidInput: the template refuses the messages, as some do with system messages, or
                does not know a name of `kwargs`.
            EngineFailure: the template cannot be rendered.
        """
        refuse_template_kwargs(kwargs, self._knows)
        given = {name: self._safe_within(value) for name, value in kwargs.items()}
        entries = self._formed(self._safe_within(_entries(messages)))
        offered = self._safe_within(described(tools)) or None
        try:
            # The prefix is the model's own: it continues from the tokens that it generated.
            return self._rendered(entries, given, offered) + self.defuse(prefix)
        except Refusal as error:
            raise InvalidInput(
                f"The model's chat template refuses the messages: {error}", param="messages"
            ) from None
        except Exception as error:
            raise EngineFailure(f"The model's chat template fails: {error}") from error

    def show_images(self, mark: Callable[[int], str | None]) -> bool:
        """Show the images of messages from now on. Return False if that is not possible.

        `mark`: what the model reads for the nth image of a prompt, from 1 on; None if it does not
        say. It is written where the template itself has nothing for images, and broken in what
        messages say: in some vocabularies it is no token of its own.
        """
        marks = {(mark(number) or "").strip() for number in range(1, MAX_IMAGES + 1)} - {""}
        self._break_marks = breaker(self._marks | marks, self._joint)
        self._remembered.cache_clear()
        parts = [_text_part(_PROBE)]
        plain, shown = self._tried(parts), self._tried([_IMAGE, *parts])
        # Some write a list as Python does.
        reads_parts = self._wants_parts or plain == self._tried(_PROBE) != ""
        if reads_parts and _PROBE in shown and shown != plain:
            self._shows_images = True
        elif mark(1) is not None:
            self._shows_images, self._image_mark = True, mark
        return self._shows_images

    def _shows(self, content: object) -> bool:
        return _PROBE in self._tried(content)

    def _tried(self, content: object) -> str:
        """What becomes of a message of the user; nothing where the template refuses it."""
        try:
            return self._rendered([{"role": "user", "content": content}], NO_VALUES, None)
        except Exception:  # A template may raise anything.
            return ""

    def _formed(self, entries: list[dict[str, object]]) -> list[dict[str, object]]:
        """The entries with their parts as the template takes them."""
        numbers = count(1)
        return [entry | {"content": self._form(entry["content"], numbers)} for entry in entries]

    def _form(self, parts: object, numbers: Iterator[int]) -> object:
        assert isinstance(parts, list)
        if not self._shows_images:
            parts = [_text_part("[image]") if part == _IMAGE else part for part in parts]
        elif mark := self._image_mark:
            parts = [
                _text_part(mark(next(numbers)) or "") if part == _IMAGE else part for part in parts
            ]
        if self._wants_parts or _IMAGE in parts:
            return list(_apart(_with_one_text(parts)))
        return _one_text(parts)

    def _safe(self, text: str) -> str:
        """The text without roles' marks and control tokens."""
        return self._made_safe(text) if len(text) > LONGEST_TEXT else self._remembered(text)

    def _safe_within(self, value: object) -> Any:
        return change_texts(value, self._safe)

    def _reserved(self) -> tuple[str, ...]:
        form = self.tool_format
        return () if form is None else form.reserved

    def _made_safe(self, text: str) -> str:
        return self.defuse(self._break_marks(text))

    def defuse(self, text: str) -> str:
        """The text without control tokens that could be mistaken for the model's."""
        for token in self.control_tokens:
            if token in text:
                text = text.replace(token, token[0] + self._joint + token[1:])
        return text

    def _render(self, messages: Sequence[Message]) -> str:
        return self._rendered(self._formed(_entries(messages)), NO_VALUES, None)

    def _rendered(
        self, entries: list[dict[str, object]], kwargs: TemplateValues, tools: object
    ) -> str:
        return self._template.render(
            kwargs, messages=entries, tools=tools, add_generation_prompt=True
        )


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _one_text(parts: Iterable[Mapping[str, str]]) -> str:
    return "\n".join(part["text"] for part in parts)


def _with_one_text(parts: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The parts; texts without an image between them are one."""
    for is_image, group in groupby(parts, _IMAGE.__eq__):
        alike = list(group)
        yield from alike if is_image else [_text_part(_one_text(alike))]


def _apart(parts: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The parts, each text but the first on a new line: templates that gather texts, without the
    images between them, would let a user spell a mark in two parts.
    """
    before = ""
    for part in parts:
        if part == _IMAGE:
            yield part
        else:
            yield _text_part(before + part["text"])
            before = "\n"


def _entries(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The messages in parts, calls and results of tools included."""
    names = {call.id: call.name for each in messages for call in each.tool_calls}
    return [_entry(each, names) for each in messages]


def _entry(message: Message, names: Mapping[str, str]) -> dict[str, object]:
    # Made safe as one text: a mark may be spelled in two.
    parts = list(_with_one_text(map(_part, parts_of(message.content))))
    entry: dict[str, object] = {"role": message.role.value, "content": parts}
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        entry |= {"tool_call_id": message.tool_call_id}
        entry |= {"name": names.get(message.tool_call_id, "")}
    return entry


def _part(part: TextPart | MediaPart) -> dict[str, str]:
    """An image has its bytes in its URL; what has none is named."""
    if isinstance(part, MediaPart):
        return dict(_IMAGE) if part.is_shown else _text_part(f"[{part.type}]")
    return _text_part(part.text)


def _arguments(call: ToolCall) -> object:
    """As an object, which templates write as JSON; the text itself, if it is none."""
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments


def _refuse(message: str) -> None:
    raise Refusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, without escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )

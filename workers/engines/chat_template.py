"""Messages to the one string that a chat model was trained on, by the model's own Jinja template.

Templates come with the model, so they run in Jinja's sandbox. Control tokens that a user
writes out ("<|im_end|>") are broken up: whoever could spell them could speak as the system.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.turns import Message

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

#: Invisible; keeps the tokenizer from seeing a control token.
WORD_JOINER = "\N{WORD JOINER}"


class ChatTemplate:
    """A compiled template."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Iterable[str] = (),
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
            "bos_token": bos_token,
            "eos_token": eos_token,
        }
        self._template = environment.from_string(source or PLAIN_TEMPLATE)
        #: Longest first: where one begins like another, it is the longer one.
        self.control_tokens = sorted(
            {*control_tokens} - {""}, key=lambda token: (-len(token), token)
        )

    def render(self, messages: Sequence[Message], prefix: str = "") -> str:
        """The prompt up to where the model goes on: the reply's opening and what it said already.

        Raises:
            EngineFailure: the template refuses the messages, as some do with system messages.
        """
        entries = [{"role": m.role.value, "content": self.defuse(m.content)} for m in messages]
        try:
            text = self._template.render(messages=entries, add_generation_prompt=True)
        except TemplateError as error:
            raise EngineFailure(f"The model's chat template refuses the prompt: {error}") from error
        return text + self.defuse(prefix)

    def defuse(self, text: str) -> str:
        """The text without control tokens that could be mistaken for the model's."""
        for token in self.control_tokens:
            if token in text:
                text = text.replace(token, token[0] + WORD_JOINER + token[1:])
        return text


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Unlike Jinja's own filter, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)

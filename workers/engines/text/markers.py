"""What marks roles in a chat template, and how text is kept from spelling it.

Whoever could spell a role's mark could speak as the system. A mark in a message's text is broken by
a WORD JOINER (U+2060): invisible, and no tokenizer reads the mark any more.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import structlog

from turnmill.schemas.turns import Message, Role

log = structlog.get_logger()

#: Invisible, and not a space: words stay words.
WORD_JOINER = "\N{WORD JOINER}"

#: Marks that no other text looks like. Models know those of the models that they were made from,
#: whatever their own template is.
USUAL = (
    r"<\|[^\s<>|]{1,40}\|>",
    r"<\uff5c[^<>\uff5c]{1,40}\uff5c>",  # DeepSeek
    r"<(?:start|end)_of_turn>",  # Gemma
    r"<</?SYS>>",  # Llama 2
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]",  # Mistral
)

#: What a template writes around messages: marks in brackets, headings, a label before a text.
_BRACKETS = re.compile(r"<<?[^\s<>]{1,40}>>?|\[/?[A-Z][A-Z_]{1,30}\]")
_HEADINGS = re.compile(r"#{2,} ?[^\s:#]{1,30}:?")
_LABEL = re.compile(r"(?:^|(?<=\W))[^\W\d_]\w{0,29}[:\uff1a](?=\s*$)")

#: Stands for the text of a message while a template is looked at.
_TEXT = re.compile("\ue000\\d\ue001")

_CONVERSATIONS = (
    (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER),
    (Role.USER, Role.ASSISTANT, Role.USER),
    (Role.USER,),
)


def find_marks(render: Callable[[Sequence[Message]], str]) -> set[str]:
    """Find what a template writes around the messages of a conversation to tell who says what.

    `render` may refuse roles; then a conversation without them is tried.
    """
    for roles in _CONVERSATIONS:
        messages = [
            Message(role=role, content=f"\ue000{number}\ue001") for number, role in enumerate(roles)
        ]
        try:
            around = _TEXT.split(render(messages))
        except Exception as error:  # A template may raise anything.
            log.info("template.roles_refused", roles=roles, error=type(error).__name__)
            continue
        labels = {label for each in around for label in _LABEL.findall(each)}
        return labels.union(*map(_BRACKETS.findall, around), *map(_HEADINGS.findall, around))
    return set()


def breaker(marks: Iterable[str] = ()) -> Callable[[str], str]:
    """A function that breaks these marks, and the usual ones, in a text; in upper or lower case."""
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    pattern = re.compile("|".join([*map(_as_pattern, longest_first), *USUAL]), re.IGNORECASE)
    return lambda text: pattern.sub(_broken, text)


def _as_pattern(mark: str) -> str:
    return (r"(?<!\w)" if mark[0].isalpha() else "") + re.escape(mark)


def _broken(found: re.Match[str]) -> str:
    """A label before its colon, so that the word stays whole; all others after their bracket."""
    mark = found[0]
    at = len(mark) - 1 if mark[0].isalpha() else 1
    return mark[:at] + WORD_JOINER + mark[at:]

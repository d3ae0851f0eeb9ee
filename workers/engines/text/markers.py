"""What marks roles in a chat template, and how text is kept from spelling it.

Whoever could spell a role's mark could speak as the system. A mark in a message's text is broken by
a WORD JOINER (U+2060): invisible, and the tokenizer reads the mark no more. Where the tokenizer
drops it, a space takes its place.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import structlog

from turnmill.schemas.safety.invisible import as_read
from turnmill.schemas.turns import Message, Role

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

log = structlog.get_logger()

#: Invisible, and not a space: words stay words.
WORD_JOINER = "\N{WORD JOINER}"

#: Marks that no other text looks like. Models know those of the models that they were made from,
#: whatever their own template is.
USUAL = (
    r"<\|[^\s<>|]{1,40}\|>",
    r"<\uff5c[^<>\uff5c]{1,40}\uff5c>",  # DeepSeek
    r"<(?:start|end)_of_(?:turn|image)>",  # Gemma
    r"<</?SYS>>",  # Llama 2
    # Mistral
    r"\[/?(?:INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_(?:CALLS|CONTENT|RESULTS)|ARGS|"
    r"CALL_ID|THINK|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|PREFIX|MIDDLE|SUFFIX)\]",
    r"</?s>|<(?:bos|eos|pad|unk|mask|sop|eop)>|\[(?:gMASK|sMASK|MASK|CLS|SEP|PAD|UNK)\]",
    # Calls of tools, their results, and thoughts: Hermes, Qwen, GLM, DeepSeek.
    r"</?(?:tool_calls?|tool_responses?|tools|function_calls?|think|arg_key|arg_value)>",
    r"</?(?:function|parameter)(?:=[^\s<>]{1,64})?>",
)

#: What a template writes around messages: marks in brackets, headings, a label before a text.
_BRACKETS = re.compile(r"<<?[^\s<>]{1,40}>>?|\[/?[A-Z][A-Z_]{1,30}\]")
_HEADINGS = re.compile(r"#{2,} ?[^\s:#]{1,30}:?")
_LABEL = re.compile(r"(?:^|(?<=\W))[^\W\d_]\w{0,29}[:\uff1a](?=\s*$)")

#: Texts that all tokenizers read alike.
_PLAIN = re.compile(r"[\t\n\r -~]*")

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


def breaker(marks: Iterable[str] = (), joint: str = WORD_JOINER) -> Callable[[str], str]:
    """Return a function that breaks these marks, and the usual ones, in a text; in upper or lower
    case. `joint` breaks a mark.

    Some tokenizers fold wide letters and drop invisible ones before they look for marks: what is
    a mark only to them is broken too, and the text around it stays as it is.
    """
    known = {each for mark in marks for each in (mark, mark.translate(_readings(mark, joint)))}
    longest_first = sorted(known, key=lambda mark: (-len(mark), mark))
    pattern = re.compile("|".join([*map(_as_pattern, longest_first), *USUAL]), re.IGNORECASE)

    def places(text: str) -> Iterator[int]:
        """A label's is before its colon, so that the word stays whole; another's after its bracket.

        A mark may begin within another.
        """
        start = -1
        while found := pattern.search(text, start + 1):
            start, mark = found.start(), found[0]
            yield start + (len(mark) - 1 if mark[0].isalpha() else 1)

    def break_marks(text: str) -> str:
        cuts = set(places(text))
        # This holds the GIL for each turn's whole history. A text that no tokenizer reads otherwise
        # is searched once, and only one that hides a mark is mapped character by character.
        readings = {} if _PLAIN.fullmatch(text) else _readings(text, joint)
        if readings and (hidden := set(places(text.translate(readings)))):
            pieces = (readings.get(ord(char), char) for char in text)
            origins = [number for number, piece in enumerate(pieces) for _ in piece]
            cuts.update(origins[place] for place in hidden)
        return joint.join(text[start:end] for start, end in pairwise((0, *sorted(cuts), len(text))))

    return break_marks


def change_texts(value: object, change: Callable[[str], str]) -> Any:
    """The JSON value with each text within it, keys included, changed."""
    match value:
        case str():
            return change(value)
        case list() | tuple():
            return [change_texts(each, change) for each in value]
        case dict():
            return {change(key): change_texts(each, change) for key, each in value.items()}
    return value


def _readings(text: str, joint: str) -> dict[int, str]:
    """Return how tokenizers may read each character of a text that they may read otherwise, by its
    code point, for `str.translate`. The joint is one that they do not drop.
    """
    return {ord(char): read for char in set(text) - {joint} if (read := as_read(char)) != char}


def _as_pattern(mark: str) -> str:
    return (r"(?<!\w)" if mark[0].isalpha() else "") + re.escape(mark)


def joint_for(normalizer: "Normalizer | None") -> str:
    """What breaks a mark for a tokenizer with this normalizer of the `tokenizers` library, or with
    none: a WORD JOINER, or a space where that is dropped.
    """
    text = f"a{WORD_JOINER}b"
    is_kept = normalizer is None or WORD_JOINER in normalizer.normalize_str(text)
    return WORD_JOINER if is_kept else " "


#: In brackets, as control tokens are, and none of the usual ones.
_BRACKETED = re.compile(r"[<\[{(].+[>\])}]", re.DOTALL)
_USUAL = re.compile("|".join(USUAL), re.IGNORECASE)


def unusual(tokens: Iterable[str]) -> set[str]:
    """Those of a vocabulary's own tokens in brackets that the usual marks do not tell of."""
    return {each for each in tokens if _BRACKETED.fullmatch(each) and not _USUAL.fullmatch(each)}

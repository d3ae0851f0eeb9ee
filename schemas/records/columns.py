"""Which of a file's columns are read as what; the others are carried along to the results."""

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import ClassVar

from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import InvalidInput

COLUMNS = tuple(BacklogRow.model_fields)

#: What other systems call our columns; their spelling is too far off to be guessed.
_SYNONYMS = {
    "content": "prompt",
    "input": "prompt",
    "message": "prompt",
    "question": "prompt",
    "text": "prompt",
    "custom_id": "id",
    "conversation_id": "conversation",
    "session": "conversation",
    "thread": "conversation",
    "instructions": "system",
    "order": "turn",
    "seq": "turn",
    "max_completion_tokens": "max_tokens",
}

#: Columns that an option can name.
_NAMED = ("id", "prompt", "conversation")

#: What programs write into a text table for an absent cell.
_ABSENT_TEXTS = frozenset({"", "NaN", "nan", "#N/A"})

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
_SHOWN_COLUMNS = 20

#: Names more alike than this are the same one, misspelled.
_ALIKE = 0.75


@dataclass(frozen=True, slots=True)
class Template:
    r"""A prompt over several columns: `Subject: {subject}\n{description}`."""

    text: str

    def __post_init__(self) -> None:
        if not self.names:
            raise InvalidInput(
                "The template names no column. Write a column in braces: 'Subject: {subject}'."
            )

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in _PLACE.findall(self.text) if name.strip()]

    def render(self, cells: Mapping[str, object]) -> str | None:
        """The prompt of a row. None where no column of the template is given."""
        if all(is_absent(cells.get(name)) for name in self.names):
            return None
        text = re.sub(r"\\[nt\\]", lambda escape: _ESCAPES[escape[0]], self.text)
        return _PLACE.sub(lambda place: _fill(place, cells), text)


def _fill(place: re.Match[str], cells: Mapping[str, object]) -> str:
    if place[1] is None:
        return place[0][0]
    value = cells.get(place[1].strip())
    return "" if is_absent(value) else text_of(value)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a file has what we read. Without any name given: under our own names."""

    #: Whether an option names the line of the header.
    names_header: ClassVar[bool] = True

    id: str | None = None
    prompt: str | None = None
    conversation: str | None = None
    #: In place of a prompt's column.
    template: Template | None = None
    #: Carried along, although they are called like columns of ours.
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.prompt and self.template:
            raise InvalidInput("Give either --prompt or --template, not both.")

    @property
    def is_named(self) -> bool:
        return bool(self.id or self.prompt or self.conversation or self.template)

    @property
    def sources(self) -> Mapping[str, str]:
        """The file's name of each column of ours."""
        return _sources_of(self)

    def reads(self, name: str) -> bool:
        """Whether the file's column of this name becomes a part of the turns."""
        templated = self.template.names if self.template else ()
        return name in self.sources.values() or name in templated

    def pick(self, cells: Mapping[str, object], *, is_sheet: bool = False) -> dict[str, object]:
        """The cells of a row under our names. Misspelled columns come along, to be refused.

        In a sheet a text of digits is a number, and a date is no text.
        """
        given = {
            ours: _typed(ours, cells[theirs], is_sheet)
            for ours, theirs in self.sources.items()
            if theirs in cells and not is_absent(cells[theirs])
        }
        if self.template:
            given["prompt"] = self.template.render(cells)
        if not self.is_named:
            given |= {name: cells[name] for name in cells if self.seems_meant(name, cells)}
        return {name: value for name, value in given.items() if value is not None}

    def seems_meant(self, name: str, names: Mapping[str, object] | Sequence[str]) -> bool:
        """Whether an unknown column is a column of ours, misspelled, rather than the file's own."""
        if name in COLUMNS or name in self.ignored or self.is_named:
            return False
        meant = guess(name)
        # A prompt may be `messages` as well.
        given = ("prompt", "messages") if meant == "prompt" else (meant,)
        return meant is not None and not any(each in names for each in given)

    def find_faults(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """What is wrong with the columns of a file: the column, and why."""
        misspelled = [name for name in names if self.seems_meant(name, names)]
        yield from ((name, describe_unknown(name)) for name in misspelled)
        yield from self.find_missing(names)
        sources = self.sources
        has_prompt = self.template or any(sources.get(n) in names for n in ("prompt", "messages"))
        if not (has_prompt or misspelled or self.prompt):
            yield (
                "prompt",
                f"there is no such column. There are {_listed(names)}. Name the column with the "
                "question: --prompt COLUMN, or several in a text: --template 'Subject: {subject}'",
            )

    def find_missing(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """The columns that options name and the file does not have."""
        named = [(name, f"--{name}") for name in _NAMED if getattr(self, name)]
        wanted = [(getattr(self, name), option) for name, option in named]
        wanted += [(n, "--template") for n in (self.template.names if self.template else ())]
        for column, option in wanted:
            if column not in names:
                yield column, f"there is no such column ({option}). There are {_listed(names)}"

    def describe(self, names: Sequence[str]) -> str:
        """What is read as what: `id, prompt = Beschreibung; 7 columns carried along`."""
        pairs = [
            ours if ours == theirs else f"{ours} = {theirs}"
            for name in names
            for ours, theirs in self.sources.items()
            if theirs == name
        ]
        if self.template:
            pairs.append(f"prompt = template over {', '.join(dict.fromkeys(self.template.names))}")
        carried = sum(not self.reads(name) for name in names)
        return ", ".join(pairs) + (f"; {carried} carried along" if carried else "")


@functools.lru_cache(maxsize=64)
def _sources_of(columns: Columns) -> Mapping[str, str]:
    named = {name: getattr(columns, name) for name in _NAMED if getattr(columns, name)}
    hidden = {"prompt", "messages"} if columns.prompt or columns.template else set()
    kept = (n for n in COLUMNS if n not in {*named, *hidden, *columns.ignored})
    return {**{name: name for name in kept}, **named}


@functools.lru_cache(maxsize=4096)
def guess(name: str) -> str | None:
    """The column of ours that somebody who writes this name means."""
    close = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=_ALIKE)
    return _SYNONYMS.get(name.lower()) or next(iter(close), None)


def describe_unknown(name: str) -> str:
    """Why a column is refused, with the one that was probably meant."""
    meant = guess(name)
    if meant is None:
        return f"is not a column. Known are {', '.join(COLUMNS)}"
    option = f" Then give: --{meant} {name!r}." if meant in _NAMED else ""
    return f"is not a column. Did you mean '{meant}'?{option} To carry it along: --ignore {name!r}"


def is_absent(value: object) -> bool:
    """Whether a cell is empty, by what spreadsheets and data frames write for that."""
    if isinstance(value, str):
        return value in _ABSENT_TEXTS
    return value is None or (isinstance(value, float) and value != value)


def text_of(value: object) -> str:
    """A cell as text: dates as ISO 8601, whole numbers without a point, lists as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        # A spreadsheet's dates, and those of data frames, are times at midnight of no zone.
        is_day = value.tzinfo is None and value.time() == time()
        return value.date().isoformat() if is_day else value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def _typed(name: str, value: object, is_sheet: bool) -> object:
    if name in ("id", "conversation") and isinstance(value, float) and value.is_integer():
        # Data frames keep whole numbers as floats in a column with absent cells.
        return int(value)
    is_text = name in ("prompt", "system") and not isinstance(value, bool)
    return text_of(value) if is_sheet and (is_text or isinstance(value, date | time)) else value


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return ", ".join(repr(name[:80]) for name in names[:_SHOWN_COLUMNS]) + more

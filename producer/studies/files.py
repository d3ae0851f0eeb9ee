"""Ratings as files: written for other tools, and read from them. One row a rating."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple
from uuid import UUID

from turnmill.producer.batches.outputs.place import replaced
from turnmill.producer.batches.outputs.table import defused, is_formula
from turnmill.producer.studies.model import Study, check_values
from turnmill.producer.studies.raters import ensure_rater
from turnmill.producer.studies.rating import read_comment
from turnmill.producer.studies.results import GivenRating
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.json_lines import one_line
from turnmill.schemas.postgres.database import Cursor, Database
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.table import read_table

_COLUMNS = tuple(GivenRating.__dataclass_fields__)
_NEEDED = ("item_id", "rater", "dimension", "value")


class _Item(NamedTuple):
    id: UUID
    left_is_a: bool | None


_ITEMS = "SELECT id, left_is_a FROM study_items WHERE study_id = %s"

#: A later import of the same rating replaces it.
_ASSIGN = """
INSERT INTO study_assignments (item_id, rater_id, leased_until, completed_at, seconds, comment)
VALUES (%(item)s, %(rater)s, clock_timestamp(), clock_timestamp(), %(seconds)s, %(comment)s)
ON CONFLICT (item_id, rater_id) DO UPDATE SET
    completed_at = coalesce(study_assignments.completed_at, excluded.completed_at),
    seconds = coalesce(excluded.seconds, study_assignments.seconds),
    comment = coalesce(excluded.comment, study_assignments.comment)
"""

_RATE = """
INSERT INTO study_ratings (item_id, rater_id, dimension, value)
VALUES (%(item)s, %(rater)s, %(dimension)s, %(value)s)
ON CONFLICT (item_id, rater_id, dimension) DO UPDATE SET value = excluded.value
"""


def write_ratings(
    path: Path, study: Study, ratings: Sequence[GivenRating], *, as_scores: bool = False
) -> None:
    """Write ratings as .csv or .jsonl; `as_scores` in the shape of Langfuse's scores (JSONL).

    Raises:
        InvalidInput: the suffix is unknown, or the file is there already or cannot be written.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None or (as_scores and writer is not _write_jsonl):
        wanted = "ends in .jsonl" if as_scores else "ends in .csv or .jsonl"
        raise InvalidInput(f"'{path.name}' is no file for ratings: its name {wanted}.")
    rows = (_score(study, each) if as_scores else _plain(each) for each in ratings)
    with (
        replaced(path, overwrite=False) as part,
        part.open("w", encoding="utf-8", newline="") as file,
    ):
        writer(file, rows)


def import_ratings(database: Database, study: Study, path: Path) -> int:
    """Read ratings that were given elsewhere, for this study's items; return their number.

    The columns are those of an export: `item_id`, `rater`, `dimension`, `value`, and perhaps
    `seconds` and `comment`, which are replaced where a row has them. All are imported or none.

    Raises:
        InvalidInput: a row names an item, dimension or value that the study does not have, or an
            item lacks a dimension, or has two comments of one rater, or one that is too long.
    """
    items = {row.id: row.left_is_a for row in database.fetch(_Item, _ITEMS, (study.study_id,))}
    found: dict[tuple[UUID, str], _Imported] = {}
    for line, cells in read_table(path, _NEEDED):
        try:
            item_id, value = UUID(hex=text_of(cells["item_id"])), _whole(cells["value"])
            key, dimension = (item_id, _text(cells["rater"])), text_of(cells["dimension"])
            imported = found.setdefault(key, _Imported())
            imported.add(cells)
        except (KeyError, ValueError):
            raise InvalidInput(f"{path}, line {line}: a cell is empty or no number.") from None
        except InvalidInput as error:
            raise InvalidInput(f"{path}, line {line}: {error.message}", param="comment") from None
        if item_id not in items:
            raise InvalidInput(f"{path}, line {line}: the study has no item {item_id.hex}.")
        # A file says which reply is better, the table which side was.
        imported.values[dimension] = -value if items[item_id] is False else value
    for imported in found.values():
        check_values(study, imported.values)
    with database.cursor() as cursor:
        _store(cursor, study, found)
    return sum(len(imported.values) for imported in found.values())


@dataclass(slots=True)
class _Imported:
    """What one rater says of one item."""

    seconds: float | None = None
    comment: str | None = None
    values: dict[str, int] = field(default_factory=dict)

    def add(self, cells: dict[str, object]) -> None:
        """Raises `ValueError` and `InvalidInput`."""
        if "seconds" in cells:
            self.seconds = float(text_of(cells["seconds"]))
            if not 0 <= self.seconds < math.inf:
                raise ValueError
        # A rater writes one comment of an item: it stands beside each dimension.
        comment = read_comment(_text(cells.get("comment", "")))
        if comment is not None and self.comment not in (None, comment):
            raise InvalidInput("the rater has another comment of this item in a line before.")
        self.comment = comment or self.comment


def _whole(cell: object) -> int:
    """Read `4`, and `4.0` of data frames. Raises `ValueError`."""
    number = float(text_of(cell))
    if not number.is_integer():
        raise ValueError
    return int(number)


def _text(cell: object) -> str:
    """Read a text without the apostrophe that an export puts before what looks like a formula."""
    text = text_of(cell)
    return text[1:] if text.startswith("'") and is_formula(text[1:]) else text


def _store(cursor: Cursor, study: Study, found: dict[tuple[UUID, str], _Imported]) -> None:
    names = dict.fromkeys(name for _, name in found)
    raters = {name: ensure_rater(cursor, study.study_id, name) for name in names}
    for (item_id, name), imported in found.items():
        own = {"item": item_id, "rater": raters[name]}
        known = {"seconds": imported.seconds, "comment": imported.comment}
        cursor.execute(_ASSIGN, {**own, **known})
        for dimension, value in imported.values.items():
            cursor.execute(_RATE, {**own, "dimension": dimension, "value": value})


def _plain(rating: GivenRating) -> dict[str, object]:
    return {**asdict(rating), "rated_at": rating.rated_at.isoformat(timespec="milliseconds")}


def _score(study: Study, rating: GivenRating) -> dict[str, object]:
    """A score as Langfuse's public API takes it: https://api.reference.langfuse.com"""
    is_pair = study.kind == "pairwise"
    return {
        "id": f"{rating.item_id}-{rating.rater}-{rating.dimension}",
        "traceId": rating.source.get("turn_id", rating.item_id),
        "name": rating.dimension,
        "dataType": "CATEGORICAL" if is_pair else "NUMERIC",
        "value": {-1: "a", 0: "tie", 1: "b"}[rating.value] if is_pair else rating.value,
        "comment": rating.comment,
        "metadata": {"study": study.name, "rater": rating.rater, "is_repeat": rating.is_repeat},
    }


def _write_jsonl(file: IO[str], rows: Iterable[dict[str, object]]) -> None:
    for row in rows:
        file.write(one_line(json.dumps(row, ensure_ascii=False)) + "\n")


def _write_csv(file: IO[str], rows: Iterable[dict[str, object]]) -> None:
    """Write RFC 4180. A text that a spreadsheet would compute begins with an apostrophe."""
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    for row in rows:
        writer.writerow([defused(row[name]) for name in _COLUMNS])


_WRITERS: dict[str, Callable[[IO[str], Iterable[dict[str, object]]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}

"""The file formats of backlogs: JSONL, CSV and Parquet in, one mapping per row out.

Files are read as streams and never held in memory. A line that cannot be read is
reported and reading continues, so that one pass finds every bad line.
"""

import codecs
import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any

from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import InvalidInput

#: One line is held in memory at a time. No request to the API may be larger either.
MAX_LINE_BYTES = 4 * 1024 * 1024

#: Rows of a Parquet file that are turned into Python objects at a time.
_PARQUET_ROWS = 256

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


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line."""

    #: From 1; in Parquet, which has no lines, the number of the row.
    line: int
    column: str | None
    message: str


Report = Callable[[Problem], None]
#: Line number and cells.
Record = tuple[int, dict[str, Any]]


def read_records(path: Path, report: Report) -> Iterator[Record]:
    """The rows of a backlog file; what cannot be read goes to `report`.

    Raises:
        InvalidInput: the file cannot be read at all.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    if reader is None or (reader is _read_parquet and _is_gzipped(path)):
        known = ", ".join(_READERS)
        raise InvalidInput(
            f"'{path.name}' is no backlog format. Known are {known}; text may be gzipped (.gz)."
        )
    try:
        yield from reader(path, report)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInput(f"'{path.name}' is not a complete gzip file: {error}.") from None
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read: {error.strerror or error}.") from None


def open_bytes(path: Path) -> BufferedReader | gzip.GzipFile:
    """The file's content, without the compression around it."""
    return gzip.GzipFile(path) if _is_gzipped(path) else path.open("rb")


def describe_unknown(column: str) -> str:
    """Why a column is refused, with the one that was probably meant."""
    close = difflib.get_close_matches(column.lower(), COLUMNS, n=1)
    meant = _SYNONYMS.get(column.lower()) or next(iter(close), None)
    if meant:
        return f"is not a column. Did you mean '{meant}'?"
    return f"is not a column. Known are {', '.join(COLUMNS)}."


def _is_gzipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _lines(path: Path, report: Report) -> Iterator[str]:
    """Every line, in UTF-8; an unreadable one is reported and comes as empty or mangled."""
    with open_bytes(path) as file:
        for number in count(1):
            raw = file.readline(MAX_LINE_BYTES + 1)
            if not raw:
                return
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if len(raw) > MAX_LINE_BYTES:
                _skip_line(file, raw)
                report(Problem(number, None, f"is longer than {MAX_LINE_BYTES >> 20} MiB"))
                raw = b"\n"
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                where = f"byte {error.start + 1} is 0x{raw[error.start]:02x}"
                report(Problem(number, None, f"is not UTF-8 ({where}); save the file as UTF-8"))
                yield "\n"


def _skip_line(file: BufferedReader | gzip.GzipFile, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE_BYTES)


def _read_jsonl(path: Path, report: Report) -> Iterator[Record]:
    for number, line in enumerate(_lines(path, report), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            report(Problem(number, None, f"is not JSON: {error.msg} (character {error.pos + 1})"))
        except (ValueError, RecursionError):
            report(Problem(number, None, "is not JSON that can be read"))
        else:
            if isinstance(cells, dict):
                yield number, cells
            else:
                report(Problem(number, None, "is not a JSON object"))


def _read_csv(path: Path, report: Report, delimiter: str = ",") -> Iterator[Record]:
    # The limit belongs to the process; a cell can be as long as a line.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(_lines(path, report), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report(Problem(line, None, f"is not CSV: {error}; is a quote left open?"))
            return
        if not any(cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if not _knows_columns(header, line, report):
                return
        elif len(cells) != len(header):
            message = f"has {len(cells)} cells, the header has {len(header)}"
            report(Problem(line, None, message))
        else:
            yield line, {k: v for k, v in zip(header, cells, strict=True) if v}


def _read_parquet(path: Path, report: Report) -> Iterator[Record]:
    arrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            if not _knows_columns(file.schema_arrow.names, 1, report):
                return
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"'{path.name}' is not readable as Parquet: {reason}") from None


def import_pyarrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`, which only Parquet files need. Raises `InvalidInput`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInput("Parquet files need: pip install 'turnmill[parquet]'") from None
    return pyarrow, pyarrow.parquet


def _knows_columns(names: Sequence[str], line: int, report: Report) -> bool:
    """Once for all rows, where the format names its columns in one place."""
    good = True
    for position, name in enumerate(names):
        message = "appears twice" if name in names[:position] else None
        if name not in COLUMNS:
            message = describe_unknown(name)
        if message:
            report(Problem(line, name[:80] or "(no name)", message))
            good = False
    return good


_READERS: dict[str, Callable[[Path, Report], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}

"""The formats by the suffix of a file's name."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records import delimited, json_lines, parquet, spreadsheet
from turnmill.schemas.records.base import Reader, Reading, Record
from turnmill.schemas.records.encodings import check_encoding
from turnmill.schemas.records.text import is_gzipped

READERS: dict[str, Reader] = {
    ".jsonl": json_lines.read,
    ".ndjson": json_lines.read,
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".xlsx": spreadsheet.read,
    ".parquet": parquet.read,
}

#: Formats that are text, and may be gzipped.
TEXTS = frozenset({".jsonl", ".ndjson", ".csv", ".tsv"})


def split_format(path: Path) -> tuple[str, str]:
    """The name without its format, and the format: `a.b`, `.csv.gz`."""
    suffixes = path.suffixes[-2:] if is_gzipped(path) else path.suffixes[-1:]
    ending = "".join(suffixes)
    return path.name.removesuffix(ending), ending


def format_of(path: Path) -> str:
    """The suffix that says what a file is, without its compression."""
    return split_format(path)[1].lower().removesuffix(".gz")


def check_format(path: Path) -> str:
    """Return the format of a backlog file. Raises `InvalidInput` where none of ours reads it."""
    kind = format_of(path)
    if kind not in READERS or (is_gzipped(path) and kind not in TEXTS):
        known = ", ".join(READERS)
        raise InvalidInput(
            f"'{path.name}' is no backlog format. Known are {known}; text may be gzipped (.gz)."
        )
    return kind


def read_records(reading: Reading) -> Iterator[Record]:
    """The rows of a backlog file; what cannot be read goes to `report`.

    Raises:
        InvalidInput: the file cannot be read at all.
    """
    path, kind = reading.path, check_format(reading.path)
    _check_layout(reading, kind)
    try:
        yield from READERS[kind](reading)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInput(f"'{path.name}' is not a complete gzip file: {error}.") from None
    except UnicodeError as error:
        name = reading.layout.encoding
        raise InvalidInput(f"'{path.name}' cannot be read as {name}: {error}.") from None
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read: {error.strerror or error}.") from None


def _check_layout(reading: Reading, kind: str) -> None:
    layout = reading.layout
    if layout.encoding and kind in TEXTS:
        reading.layout = replace(layout, encoding=check_encoding(layout.encoding))
    fits = {
        "--delimiter": layout.delimiter is None or READERS[kind] is delimited.read,
        "--encoding": layout.encoding is None or kind in TEXTS,
        "--header": layout.header is None or READERS[kind] in (delimited.read, spreadsheet.read),
        "--sheet": layout.sheet is None or kind == ".xlsx",
    }
    for option, is_meant in fits.items():
        if not is_meant:
            raise InvalidInput(f"'{reading.path.name}': {option} means nothing in {kind} files.")

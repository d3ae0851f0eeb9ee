"""Lines of text files: their compression, their encoding, their ends."""

import gzip
import io
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from turnmill.schemas.records import base
from turnmill.schemas.records.base import Problem, Report

#: What `surrogateescape` puts in place of bytes that cannot be decoded.
_UNDECODED = re.compile("[\udc80-\udcff]")


def is_gzipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """The file's content, without the compression around it."""
    return gzip.GzipFile(path) if is_gzipped(path) else path.open("rb")


def read_lines(path: Path, encoding: str, report: Report) -> Iterator[str]:
    r"""Every line with its end: `\n`, `\r\n`, or a lone `\r` as old Macs wrote.

    A line that cannot be read is reported and comes as an empty one, so that lines keep their
    numbers.
    """
    with (
        open_bytes(path) as file,
        io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="") as text,
    ):
        for number in count(1):
            line = text.readline(base.MAX_LINE_BYTES + 1)
            if not line:
                return
            if number == 1:
                line = line.lstrip("\ufeff")
            if _is_too_long(line):
                _skip_line(text, line)
                limit = base.MAX_LINE_BYTES >> 20
                report(Problem(number, None, f"is longer than {limit} MiB"))
                line = "\n"
            elif found := _UNDECODED.search(line):
                report(Problem(number, None, _describe_byte(line, found.start(), encoding)))
                line = "\n"
            yield line


def _is_too_long(line: str) -> bool:
    if len(line) <= base.MAX_LINE_BYTES // 4:
        return False
    return len(line.encode(errors="surrogateescape")) > base.MAX_LINE_BYTES


def _skip_line(text: io.TextIOWrapper, line: str) -> None:
    while line and not line.endswith(("\n", "\r")):
        line = text.readline(base.MAX_LINE_BYTES)


def _describe_byte(line: str, place: int, encoding: str) -> str:
    byte = ord(line[place]) - 0xDC00
    position = len(line[:place].encode(encoding, errors="surrogateescape")) + 1
    name = encoding.upper() if encoding == "utf-8" else encoding
    return f"is not {name} (byte {position} is 0x{byte:02x}); save the file as UTF-8"

"""Tables of questions and answers: a row is one passage, and may have an address of its own."""

from pathlib import Path

from turnmill.schemas.citations.addresses import MAX_URL_CHARS, address_of
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.table import read_table
from turnmill.workers.readers.base import Document, Section


def read(path: Path) -> Document:
    """Rows with `question` and `answer`, and perhaps `url`."""
    rows = read_table(path, ("question", "answer"))
    sections = (_section(path, line, row) for line, row in rows if "answer" in row)
    return Document(path.stem, tuple(sections))


def _section(path: Path, line: int, row: dict[str, object]) -> Section:
    question, answer = text_of(row.get("question", "")), text_of(row["answer"])
    given = text_of(row.get("url", "")).strip()
    url = address_of(given)
    if given and url is None:
        raise InvalidInput(
            f"{path}, line {line}, column 'url': is no address of http or https, is longer than "
            f"{MAX_URL_CHARS} characters, or has a login in it. Correct it, or leave it empty."
        )
    return Section((question,), (answer,), is_whole=True, url=url)

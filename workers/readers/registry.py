"""The readers by the suffix of a file's name. Each is imported where it is needed."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.store.knowledge.formats import Format, format_of
from turnmill.workers.readers.base import Document

Reader = Callable[[Path], Document]

#: The module whose function `read` reads it.
READERS: dict[Format, str] = {
    Format.MARKDOWN: "markdown",
    Format.TEXT: "text",
    Format.HTML: "html",
    Format.PDF: "pdf",
    Format.WORD: "docx",
    Format.TABLE: "answers",
}

#: The extra that has the libraries of a format.
EXTRA = "knowledge"


def read_document(path: Path) -> Document:
    """Read a file as its name says.

    Raises:
        InvalidInput: its content is something else, cannot be read, or has no text.
        SettingsError: a library is missing.
    """
    format_ = format_of(path.name)
    if format_ is None:
        raise InvalidInput(f"There is no reader for '{path.suffix[:20]}'.")
    reader = _reader(format_)
    try:
        return reader(path)
    except RecursionError:
        raise InvalidInput("It is nested too deeply to be read.") from None


def _reader(format_: Format) -> Reader:
    try:
        module = import_module(f"turnmill.workers.readers.{READERS[format_]}")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed where workers run: pip install 'turnmill[{EXTRA}]'"
        ) from None
    reader: Reader = module.read
    return reader

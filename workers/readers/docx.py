"""Word documents: what mammoth makes of them, read as HTML."""

import zipfile
from pathlib import Path

import mammoth

from turnmill.schemas.errors import InvalidInput
from turnmill.workers.readers.base import Document
from turnmill.workers.readers.html import read_page

#: Unpacked sizes: of the text, which is held in memory as a tree, and of all parts together.
MAX_TEXT_BYTES = 32 << 20
MAX_BYTES = 512 << 20

_DAMAGED = "It is damaged, or no Word document: open it in Word and save it again as .docx."


def read(path: Path) -> Document:
    _check_size(path)
    try:
        with path.open("rb") as file:
            found = mammoth.convert_to_html(file, convert_image=_no_image)
    except MemoryError:
        raise
    except Exception:
        # mammoth translates none of what ZIP, XML and its own code raise.
        raise InvalidInput(_DAMAGED) from None
    return read_page(found.value, path.stem)


def _check_size(path: Path) -> None:
    """Look before anything is unpacked: a part of a ZIP file says how large it is, and no more than
    that is ever read of it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError):
        raise InvalidInput(_DAMAGED) from None
    text = max((part.file_size for part in parts if part.filename.endswith(".xml")), default=0)
    if text > MAX_TEXT_BYTES or sum(part.file_size for part in parts) > MAX_BYTES:
        raise InvalidInput(
            f"It unpacks to more than is read: {MAX_TEXT_BYTES >> 20} MiB of text, "
            f"{MAX_BYTES >> 20} MiB in all. Split it."
        )


def _no_image(image: object) -> list[object]:
    """Pictures are not read, and would be held in memory as text."""
    return []

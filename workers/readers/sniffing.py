"""What a document's content is, held against what its name says."""

import zipfile
from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.files.sniffing import sniff
from turnmill.schemas.store.knowledge.formats import Format, format_of

_HEAD_BYTES = 4096

#: An older Office file, or a newer one with a password:
#: https://learn.microsoft.com/openspecs/windows_protocols/ms-cfb
_COMPOUND = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_RICH_TEXT = b"{\\rtf"

#: A part of the ZIP file by which a format is known.
_PARTS = {"word/document.xml": "a Word document", "xl/workbook.xml": "a spreadsheet"}

_PDF, _ZIP = "a PDF", "a ZIP archive"
_EXPECTED: dict[str, tuple[str, ...]] = {
    ".pdf": (_PDF,),
    ".docx": (_PARTS["word/document.xml"],),
    ".xlsx": (_PARTS["xl/workbook.xml"],),
}
_TEXT = "text"


def refuse_disguised(path: Path) -> None:
    """Raises `InvalidInput` if the content is not what the name says."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.strip():
        raise InvalidInput("It is empty.")
    found = _kind(path, head)
    if found in _EXPECTED.get(suffix, (_TEXT,)):
        return
    if head.startswith(_COMPOUND):
        raise InvalidInput(
            "It is encrypted, or an older Office file: save it without a password, as .docx, .xlsx "
            "or PDF."
        )
    raise InvalidInput(
        f"It is called '{suffix}', and its content is {found}. Give it the right name"
        + (", or save it as PDF." if format_of(path.name) is Format.WORD else ".")
    )


def _kind(path: Path, head: bytes) -> str:
    """A word for people: what this content is."""
    # PDF allows for something before its first line.
    if b"%PDF-" in head[:1024] and b"\0" not in head[: head.index(b"%PDF-")]:
        return _PDF
    if head.startswith(_COMPOUND):
        return "an older Office file, or one with a password"
    if head.startswith(_RICH_TEXT):
        return "Rich Text"
    mime = sniff(head)
    if mime == "application/zip":
        return _kind_of_archive(path)
    if mime.startswith(("image/", "audio/")):
        return f"no document ({mime})"
    return "binary" if b"\0" in head and not _is_utf_16(head) else _TEXT


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return "a damaged ZIP archive"
    return next((kind for part, kind in _PARTS.items() if part in names), _ZIP)


def _is_utf_16(head: bytes) -> bool:
    """Tables may be: programs export them so."""
    return head.startswith((b"\xff\xfe", b"\xfe\xff"))

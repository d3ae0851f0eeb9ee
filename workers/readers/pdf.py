"""PDF: the text layer, page by page. Pictures of text are not read."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pypdfium2
from pypdfium2 import raw

from turnmill.schemas.errors import InvalidInput
from turnmill.workers.readers.base import Document, Section

MAX_PAGES = 5000

#: Of a text layer, the share of characters without a meaning from which nobody can use it. Fonts
#: without a table of Unicode characters give such; Chinese PDFs often have them.
MAX_BROKEN = 0.02
_PLACEHOLDERS = re.compile(r"\(cid:\d+\)|GLYPH<[^>]{0,40}>")

#: PDFium's mark of a word that is divided at the end of its line.
_DIVIDED = re.compile("[\ufffe\u00ad\x02]\\s*")
_NEEDS_OCR = "Recognize its text with an OCR program, for example ocrmypdf, and add the result."

#: A line that is shorter than this share of its page's longest, and ends a sentence, ends a
#: paragraph: PDF has no paragraphs.
_SHORT = 0.8
_SENTENCE_ENDS = (".", "!", "?", ":", "。", "！", "？", "：")
_WIDE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def read(path: Path) -> Document:
    with _opened(path) as pdf:
        if len(pdf) > MAX_PAGES:
            raise InvalidInput(f"It has {len(pdf):,} pages; {MAX_PAGES:,} are read. Split it.")
        pages = [_text_of(pdf, number) for number in range(len(pdf))]
    _refuse_broken("".join(pages))
    sections = (
        Section((f"page {number}",), tuple(_paragraphs(text)))
        for number, text in enumerate(pages, start=1)
        if text.strip()
    )
    return Document(path.stem, tuple(sections))


def _opened(path: Path) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise InvalidInput("It is encrypted: save it without a password.") from None
        raise InvalidInput(
            "It is damaged, or no PDF: open it in a viewer and save it again."
        ) from None


def _text_of(pdf: pypdfium2.PdfDocument, number: int) -> str:
    try:
        page = pdf[number]
        text = page.get_textpage()
        found = str(text.get_text_bounded())
        text.close()
        page.close()
    except pypdfium2.PdfiumError:
        raise InvalidInput(
            f"Page {number + 1} is damaged: open it in a viewer and save it again."
        ) from None
    return _DIVIDED.sub("", found)


def _refuse_broken(text: str) -> None:
    """Raises `InvalidInput` where the text layer is missing, or says nothing."""
    characters = [each for each in _PLACEHOLDERS.sub("\ufffd", text) if not each.isspace()]
    if not characters:
        raise InvalidInput(f"It has no text, only pictures. {_NEEDS_OCR}")
    broken = sum(each == "\ufffd" or unicodedata.category(each) == "Co" for each in characters)
    if broken > MAX_BROKEN * len(characters):
        share = broken / len(characters)
        raise InvalidInput(
            f"Its text cannot be used: {share:.0%} of the characters have no meaning, as its fonts "
            f"do not say which letters they draw. {_NEEDS_OCR}"
        )


def _paragraphs(page: str) -> Iterator[str]:
    lines = [line.strip() for line in page.splitlines()]
    longest = max(map(len, lines), default=0)
    paragraph = ""
    for line in lines:
        paragraph = _continued(paragraph, line)
        is_end = len(line) < _SHORT * longest and line.endswith(_SENTENCE_ENDS)
        if paragraph and (is_end or not line):
            yield paragraph
            paragraph = ""
    if paragraph:
        yield paragraph


def _continued(paragraph: str, line: str) -> str:
    """Chinese and Japanese have no space where a line ends."""
    if not paragraph or not line:
        return paragraph or line
    is_wide = _WIDE.match(paragraph[-1]) and _WIDE.match(line)
    return f"{paragraph}{line}" if is_wide else f"{paragraph} {line}"

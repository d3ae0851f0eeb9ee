"""What readers make of files, and the one sentence that is said of those that they refuse."""

import os
import sys
from collections.abc import Callable

import pytest

from tests.unit.workers.readers.files import ENCRYPTED, MEANINGLESS, paragraph, pdf, pdf_of, word
from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.process.isolated import Limits, isolated
from turnmill.schemas.store.knowledge.formats import SUFFIXES, Format
from turnmill.workers.readers import registry
from turnmill.workers.readers.cutting import read
from turnmill.workers.readers.reading import read_isolated

#: A compound file: https://learn.microsoft.com/openspecs/windows_protocols/ms-cfb
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)

SMALL = Limits(memory_bytes=256 << 20, cpu_s=10, wait_s=120.0)

Passages = Callable[[str, bytes], list[tuple[str, str]]]


@pytest.fixture
def passages(tmp_path: object) -> Passages:
    """Read a file in this process."""

    def read_here(name: str, content: bytes) -> list[tuple[str, str]]:
        path = tmp_path / name  # type: ignore[operator]
        path.write_bytes(content)
        return [(each.heading, each.content) for each in read(path).passages]

    return read_here


def test_each_format_has_a_reader() -> None:
    assert set(registry.READERS) == set(Format) == set(SUFFIXES.values())


def test_a_pdf_is_read_page_by_page_and_its_lines_become_paragraphs(passages: Passages) -> None:
    first = (
        "Kettles that leak may be re-\nturned within thirty days of the purchase: all\n"
        "of them are checked.\nAsk us."
    )
    assert passages("manual.pdf", pdf([first, "Knives stay."])) == [
        (
            "page 1",
            "Kettles that leak may be returned within thirty days of the purchase: all of them are "
            "checked.\nAsk us.",
        ),
        ("page 2", "Knives stay."),
    ]


def test_a_word_document_has_the_headings_of_its_styles(passages: Passages) -> None:
    body = (
        paragraph("Returns", "Heading1")
        + paragraph("Kettles", "Heading2")
        + paragraph("A kettle may be sent back.")
        + paragraph("刀具", "Heading2")
        + paragraph("刀具不能退货。")
    )
    assert passages("returns.docx", word(body)) == [
        ("Kettles", "A kettle may be sent back."),
        ("刀具", "刀具不能退货。"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", pdf(["Kettle"], meaning=MEANINGLESS), "100% of the characters have no meaning"),
        ("a.pdf", pdf(["(cid:12)(cid:13) kettle"]), "with an OCR program"),
        ("a.pdf", pdf(["", ""]), "no text, only pictures. Recognize its text with an OCR program"),
        ("a.pdf", pdf(["Kettle"], encrypt=ENCRYPTED), "encrypted: save it without a password"),
        ("a.pdf", b"%PDF-1.7 and no more", "damaged, or no PDF"),
        ("a.docx", OLD_OFFICE, "encrypted, or an older Office file"),
        ("a.docx", b"PK\x03\x04 and no more", "damaged ZIP archive"),
        ("a.docx", word("<w:p>" * 50_000 + "</w:p>" * 50_000), "damaged, or no Word document"),
        ("a.docx", word(paragraph("a" * (40 << 20))), "unpacks to more than is read"),
        ("a.docx", pdf(["Kettle"]), "called '.docx', and its content is a PDF"),
        ("a.pdf", word(paragraph("Kettle")), "called '.pdf', and its content is a Word document"),
        ("a.xlsx", word(paragraph("Kettle")), "called '.xlsx', and its content is a Word document"),
        ("a.md", PNG, "no document (image/png)"),
        ("a.txt", pdf(["Kettle"]), "called '.txt', and its content is a PDF"),
        ("a.html", b"<p>a</p>\0\0", "binary"),
        ("a.txt", b"", "It is empty."),
        ("a.md", b"# A title alone\n", "It has no text."),
        ("a.txt", b"K\xe4se", "not UTF-8 (byte 1): save it as UTF-8"),
        ("a.csv", b"q,a\nx,y\n", "column 'question'"),
        ("a.csv", b"question,answer\nx," + b"y" * 30_000, "A row has 30,000 characters"),
        ("a.rtf", b"{\\rtf1}", "content is Rich Text"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    passages: Passages, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        passages(name, content)
    assert said in error.value.message
    assert "pytest" not in error.value.message  # no path of this machine


def test_a_page_says_what_its_encoding_is(passages: Passages) -> None:
    page = '<meta http-equiv="Content-Type" content="text/html; charset=gb2312"><p>电子发票</p>'
    assert passages("a.html", page.encode("gb18030")) == [("", "电子发票")]
    assert passages("b.html", b"<meta charset=base64><p>Kettle</p>") == [("", "Kettle")]


@pytest.mark.parametrize(
    ("page", "read"),
    [
        ("<nav>Home</nav><p>Kettles</p><footer>Imprint</footer>", "Kettles"),
        ("<div>Cookies?</div><main><p>Kettles</p></main><div>More</div>", "Kettles"),
        ("<main></main><p>Kettles</p>", "Kettles"),
        ("<nav>Home<p>Kettles", "Home\nKettles"),
        ("<p>Kettles<script>steal()</script><p>Knives", "Kettles\nKnives"),
        ("<ul><li>Kettles<li>Knives</ul>", "Kettles\nKnives"),
        ("<details><summary>Why?</summary>Because.</details>", "Why?\nBecause."),
        ("<table><tr><td>Kettle<td>30 days</table>", "Kettle | 30 days"),
        (
            "<table><caption>Prices</caption><thead><tr><th></th><th>Red</th></tr></thead><tr>"
            "<td><p>Kettle</p><p>large</p><td></td><td>5 €<br>net</td></tr></table>After",
            "Prices\nRed\nKettle large |  | 5 € net\nAfter",
        ),
        # Pages laid out by tables.
        (
            "<table><tr><td><table><tr><td>Kettle<td>5</tr></table><p>Left</p><p>over<td>Right",
            "Kettle | 5\nLeft\nover\nRight",
        ),
    ],
)
def test_of_a_page_what_people_read_is_read(passages: Passages, page: str, read: str) -> None:
    assert [content for _, content in passages("a.html", page.encode())] == [read]


@pytest.mark.parametrize("name", ["prices.html", "prices.md", "prices.docx"])
def test_no_passage_parts_a_row_of_a_table(passages: Passages, name: str) -> None:
    rows = [(f"Kettle number {n}", f"{n}.50 €") for n in range(100)]
    tags = {"html": ("<tr>", "<td>{}</td>", "</tr>"), "md": ("", "| {} ", "|\n")}
    cell = f"<w:tc>{paragraph('{}')}</w:tc>"
    begin, each, end = tags.get(name.split(".")[1], ("<w:tr>", cell, "</w:tr>"))
    body = "".join(begin + "".join(map(each.format, row)) + end for row in rows)
    content = {
        "prices.html": lambda: f"<meta charset=utf-8><table>{body}</table>".encode(),
        "prices.md": lambda: f"| kind | price |\n|---|---|\n{body}".encode(),
        "prices.docx": lambda: word(f"<w:tbl>{body}</w:tbl>"),
    }[name]()
    read = [content for _, content in passages(name, content)]
    assert len(read) > 1
    lines = "\n".join(read).splitlines()
    assert [line for line in lines if line != "kind | price"] == [" | ".join(row) for row in rows]


def test_a_long_row_is_read_as_paragraphs(passages: Passages) -> None:
    page = f"<table><tr><td><p>{'a' * 600}</p><p>b</p><td>{'c' * 600}</table>"
    assert [content for _, content in passages("a.html", page.encode())] == [
        f"{'a' * 600}\nb",
        "c" * 600,
    ]


def test_a_missing_library_is_named_with_what_to_install(
    passages: Passages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    monkeypatch.delitem(sys.modules, "turnmill.workers.readers.pdf", raising=False)
    with pytest.raises(SettingsError, match=r"pip install 'turnmill\[knowledge\]'"):
        passages("a.pdf", pdf(["Kettle"]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.pdf", pdf_of([b"BT /F 12 Tf " + b"(a) Tj " * 5_000_000 + b"ET"])),
        ("paragraphs.docx", word(paragraph("a b") * 200_000)),
    ],
)
def test_a_bomb_is_refused_at_its_limit_and_not_retried(name: str, content: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"It takes too .* Split it"):
        read_isolated(name, content, SMALL)


def test_the_process_that_reads_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", "postgresql://u:secret@h/d")
    assert isolated(os.getenv, "TURNMILL_DATABASE__URL", limits=SMALL) is None


def test_what_postgres_cannot_store_is_stored_without_it() -> None:
    row = rb'{"question": "Kettle?", "answer": "Yes\u0000 and \ud800 no"}'
    [passage] = read_isolated("a.jsonl", row, SMALL).passages
    assert passage.content.startswith("Yes")
    assert "\0" not in passage.content + passage.terms
    assert passage.content.encode()

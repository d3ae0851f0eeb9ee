"""Backlog files as their owners have them: encodings, delimiters, line ends, absent cells."""

import csv
import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records import base, spreadsheet
from turnmill.schemas.records.base import Layout
from turnmill.schemas.records.columns import Columns
from turnmill.schemas.records.encodings import UTF_8, find_encoding
from turnmill.schemas.records.table import read_table

GERMAN = "Können Sie prüfen, wo die Lieferung für Frau Müller geblieben ist? Grüße aus Köln, 30 €"
CHINESE = "我的快递三天没有更新了，请问什么时候能到？发票怎么开？我要退货，商品有质量问题。"


def rows_of(backlog: Backlog) -> list[BacklogRow]:
    return [row for _, row in backlog.rows()]


def refused(path: Path, layout: Layout | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_backlog(path, layout)
    return caught.value.message


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.csv.gz"])
def test_delimiter_is_found_and_named(tmp_path: Path, file: str, delimiter: str, name: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([("id", "prompt", "max_tokens"), ("a", "Where, or when; |that| is\tit", 5)])
    backlog = read_backlog(write(tmp_path / file, text.getvalue().encode()))
    assert rows_of(backlog) == [
        BacklogRow(id="a", prompt="Where, or when; |that| is\tit", max_tokens=5)
    ]
    assert backlog.describe() == f"{name}, UTF-8, 1 row, 3 columns; id, prompt, max_tokens"


def test_named_delimiter_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"prompt,x;id\nwhat,y;7\n")
    (row,) = rows_of(read_backlog(path, Layout(delimiter=",")))
    assert (row.id, row.prompt) == ("1", "what")
    path = write(tmp_path / "b.csv", b"id^prompt\n7^what\n")
    (row,) = rows_of(read_backlog(path, Layout(delimiter="^")))
    assert (row.id, row.prompt) == ("7", "what")


def test_delimiter_is_found_beside_a_cell_longer_than_pythons_own_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit(131_072)
    try:
        long = "a, b, c. " * 20_000
        path = write(tmp_path / "mail.csv", f"id;prompt\n1;{long}\n2;hi\n".encode())
        assert [row.id for row in rows_of(read_backlog(path))] == ["1", "2"]
    finally:
        csv.field_size_limit(before)


def test_first_line_of_excel_names_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"sep=;\r\nid;prompt\r\na;one, two\r\n")
    (row,) = rows_of(read_backlog(path))
    assert (row.id, row.prompt) == ("a", "one, two")


def test_commas_in_the_only_column_are_no_delimiter_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'prompt\n"one; two; three"\n"four, five"\n')
    assert [row.prompt for row in rows_of(read_backlog(path))] == ["one; two; three", "four, five"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", GERMAN),
        ("cp1252", "Où est mon colis ? J'ai été débité deux fois, déçu. Vérifiez à l'adresse."),
        ("gb18030", CHINESE),
        ("big5", "我的包裹還沒有到，請問什麼時候會送達？發票怎麼開"),
        ("shift_jis", "注文した商品がまだ届きません。いつ届きますか"),
        ("cp1251", "Где моя посылка? Я заказал её неделю назад"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_encoding_is_taken_from_enough_text_and_else_named(
    tmp_path: Path, encoding: str, text: str, suffix: str
) -> None:
    line = 'id,prompt\n{n},"{t}"\n' if suffix == ".csv" else '{{"id": "{n}", "prompt": "{t}"}}\n'
    lines = "".join(line.format(n=n, t=text) for n in range(12)).replace("id,prompt\n", "")
    head = "id,prompt\n" if suffix == ".csv" else ""
    path = write(tmp_path / f"a{suffix}", (head + lines).encode(encoding))
    backlog = read_backlog(path)
    assert {row.prompt for row in rows_of(backlog)} == {text}
    assert f"{encoding}, 12 rows" in backlog.describe()
    short = (head + line.format(n=0, t=text).replace("id,prompt\n", "")).encode(encoding)
    cut = short[: short.index(text.encode(encoding)) + 24]
    said = refused(write(tmp_path / f"b{suffix}", cut))
    assert "is not UTF-8 (line " in said
    assert "--encoding " in said


def test_gbk_in_a_short_file_is_refused_with_the_option_that_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "gbk.csv", "id,prompt\na,快递什么时候到\nb,我要退款\n".encode("gbk"))
    assert "It is probably gb18030" in refused(path)
    assert refused(path).endswith("--encoding gb18030")
    assert rows_of(read_backlog(path, Layout(encoding="gb18030")))[1].prompt == "我要退款"


@pytest.mark.parametrize("shift", range(4))
def test_encoding_of_a_large_file_is_found_wherever_the_sample_ends(
    tmp_path: Path, shift: int
) -> None:
    lines = ["id,prompt", *(f"{n},{'x' * shift}{CHINESE}" for n in range(1200))]
    assert find_encoding(write(tmp_path / "a.csv", "\n".join(lines).encode("gbk"))) == "gb18030"
    mac = f"prompt\r{'x' * shift}" + f"{CHINESE}\r" * 1200
    assert find_encoding(write(tmp_path / "b.csv", mac.encode("gbk"))) == "gb18030"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Where’s my parcel {}? It’s £20 – I’m “waiting”…"),
        ("cp1252", "Le colis nº{} n’est pas arrivé – où est-il ?"),
        ("cp1250", "Zażółć gęślą jaźń, gdzie jest paczka {}?"),
        ("cp1250", "Hol van a csomagom {}? Köszönöm, várok a válaszra, őrült"),
    ],
)
def test_signs_of_western_texts_are_not_taken_for_letters_of_central_europe(
    tmp_path: Path, encoding: str, text: str
) -> None:
    lines = "".join(f"{n};{text.format(n)}\n" for n in range(3000))
    assert find_encoding(write(tmp_path / "a.csv", lines.encode(encoding))) == encoding


def test_umlauts_of_a_short_file_are_not_taken_for_chinese(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,prompt\na,Grüße für Jürgen\n".encode("cp1252"))
    assert refused(path).endswith("--encoding cp1252")


def test_utf_16_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"id\tprompt\r\na\t{CHINESE}\r\n".encode("utf-16"))
    backlog = read_backlog(path)
    assert rows_of(backlog)[0].prompt == CHINESE
    assert backlog.describe().startswith("tabs, utf-16, 1 row")


@pytest.mark.parametrize("shift", range(3))
def test_utf_8_with_line_ends_of_old_macs_is_read_wherever_a_piece_of_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    monkeypatch.setattr(base, "MAX_LINE_BYTES", 300)
    lines = ["prompt" + "x" * shift, *("我的包裹到哪儿了" for _ in range(60))]
    path = write(tmp_path / "mac.csv", "\r".join(lines).encode())
    assert find_encoding(path) == UTF_8


def test_damaged_line_in_a_file_of_utf_8_is_named(tmp_path: Path) -> None:
    good = '{"prompt": "Grüße"}\n'.encode()
    path = write(tmp_path / "a.jsonl", good * 3 + b'{"prompt": "Gr\xfc\xdfe"}\n' + b'{"x": 1}\n')
    said = refused(path)
    assert "line 4: is not UTF-8 (byte 15 is 0xfc); save the file as UTF-8" in said
    assert "line 5: needs either prompt or messages" in said


def test_byte_that_a_named_encoding_lacks_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"prompt\nfine\nbad \x81\n")
    assert "line 3: is not cp1252 (byte 5 is 0x81)" in refused(path, Layout(encoding="cp1252"))


@pytest.mark.parametrize("name", ["klingon", "base64", "rot13", "a\0b"])
def test_encoding_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.csv", b"prompt\na\n")
    assert "is no encoding that Python knows" in refused(path, Layout(encoding=name))


@pytest.mark.parametrize(
    ("file", "layout", "option"),
    [
        ("a.jsonl", Layout(delimiter=";"), "--delimiter"),
        ("a.csv", Layout(sheet="x"), "--sheet"),
        ("a.jsonl", Layout(header=2), "--header"),
        ("a.xlsx", Layout(encoding="cp1252"), "--encoding"),
    ],
)
def test_option_without_a_meaning_is_refused(
    tmp_path: Path, file: str, layout: Layout, option: str
) -> None:
    assert f"{option} means nothing" in refused(write(tmp_path / file, b"x"), layout)


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_header_below_other_lines_is_found_and_named(tmp_path: Path, suffix: str) -> None:
    above = [["Export of 30.11.", None, None], [], ["Customer", None, "Ticket"]]
    rows = [*above, ["Name", "No", "Text"], ["Ann", 1, "hi"], ["Bob", 2, "ho"]]
    path = tmp_path / f"a.{suffix}"
    if suffix == "xlsx":
        book = Workbook()
        for row in rows:
            book.active.append(row)
        book.active.merge_cells("A3:B3")
        book.save(path)
    else:
        path.write_text("\n".join(";".join(str(cell or "") for cell in row) for row in rows))
    columns = Columns(id="No", prompt="Text")
    with pytest.raises(InvalidInput, match=r"line 1, Text.* --header 4"):
        read_backlog(path, columns=columns)
    backlog = read_backlog(path, Layout(header=4), columns)
    assert [(row.id, row.prompt) for row in rows_of(backlog)] == [("1", "hi"), ("2", "ho")]
    assert list(backlog.titles) == ["Name", "No", "Text"]
    with pytest.raises(InvalidInput) as caught:
        read_backlog(path, columns=Columns(prompt="Texts"))
    assert "--header 4" not in caught.value.message
    with pytest.raises(InvalidInput) as caught:
        list(read_table(path, ("Text",)))
    assert "--header" not in caught.value.message, "no backlog, and no such option"


def test_other_sheets_are_named_where_the_first_one_lacks_a_column(tmp_path: Path) -> None:
    book = Workbook()
    book.active.title = "Cover"
    book.active.append(["Export of 30.11."])
    book.create_sheet("Tickets").append(["No", "Text"])
    book.save(path := tmp_path / "a.xlsx")
    with pytest.raises(InvalidInput, match="sheet 'Cover'; with --sheet NAME, also: 'Tickets'"):
        read_backlog(path, columns=Columns(prompt="Text"))


def test_lines_without_the_delimiter_may_stand_above_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"Export, of today\n\nNo;Text\n1;hi, you\n")
    backlog = read_backlog(path, Layout(header=3), Columns(prompt="Text"))
    assert [row.prompt for row in rows_of(backlog)] == ["hi, you"]
    path = write(tmp_path / "b.csv", b"Export\nNo;Text\n1;hi\n")
    with pytest.raises(InvalidInput, match="--header LINE"):
        read_backlog(path, columns=Columns(prompt="Text"))


def test_a_layout_without_a_header_line_names_the_batch_that_it_named_before(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.csv", b"No;prompt\n1;hi\n")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    layout = {"delimiter": ";", "encoding": "utf-8", "sheet": None}
    how = json.dumps([layout, asdict(Columns())])
    expected = hashlib.sha256(f"{content} {how}".encode()).digest()
    assert read_backlog(path).fingerprint == expected
    assert read_backlog(path, Layout(header=1)).fingerprint != expected


def test_line_ends_of_old_macs_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'id,prompt\ra,hello\rb,"two\rlines"\r')
    assert [row.prompt for row in rows_of(read_backlog(path))] == ["hello", "two\rlines"]


def test_lone_return_in_a_cell_stops_no_reading(tmp_path: Path) -> None:
    said = refused(write(tmp_path / "a.csv", b"id,prompt\na,hello\rthere\nb,\nc,ok\nd\n"))
    assert "line 3: has 1 cells, the header has 2; a line break inside a cell needs quotes" in said
    assert "line 4: needs either prompt or messages" in said
    assert "line 6: has 1 cells" in said


def test_lines_after_a_wrong_quote_are_checked_too(tmp_path: Path) -> None:
    said = refused(write(tmp_path / "a.csv", b'id,prompt\na,"b"c\nb,ok\nc,\n'))
    assert "line 2: is not CSV" in said
    assert "line 4: needs either prompt or messages" in said


def test_any_number_of_byte_order_marks_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf\xef\xbb\xbfid,prompt\r\na,hi\r\n")
    assert rows_of(read_backlog(path)) == [BacklogRow(id="a", prompt="hi")]


@pytest.mark.parametrize(
    "text",
    [
        '[\n  {"id": "a", "prompt": "hi"},\n  {"id": "b", "prompt": "ho"}\n]\n',
        '[{"id": "a", "prompt": "hi"},\n {"id": "b",\n  "prompt": "ho"}]',
        '[{"id": "a", "prompt": "hi"}, {"id": "b", "prompt": "ho"}]',
        '{"id":"a","prompt":"hi"},\n{"id":"b","prompt":"ho"},\n',
        '{\n  "id": "a",\n  "prompt": "hi"\n}\n{\n  "id": "b",\n  "prompt": "ho"\n}\n',
    ],
    ids=["array", "array of mixed lines", "array in a line", "commas", "pretty"],
)
def test_json_in_other_shapes_than_lines_is_read(tmp_path: Path, text: str) -> None:
    rows = rows_of(read_backlog(write(tmp_path / "a.jsonl", text.encode())))
    assert [(row.id, row.prompt) for row in rows] == [("a", "hi"), ("b", "ho")]


def test_object_over_several_lines_is_refused_with_its_line(tmp_path: Path) -> None:
    text = '[\n{"prompt": "a"},\n\n{\n "prompt": "b", "x": }\n}\n]\n'
    assert "line 4: is not JSON: Expecting value (line 2 of it, " in refused(
        write(tmp_path / "a.jsonl", text.encode())
    )
    said = refused(write(tmp_path / "b.jsonl", b'{\n "prompt": "a"\n'))
    assert "line 1: is not JSON: the object is not closed" in said


def test_key_that_appears_twice_is_named(tmp_path: Path) -> None:
    lines = (
        b'{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n{"prompt": "d", "x": {"y": 1, "y": 2}}\n'
    )
    said = refused(write(tmp_path / "a.jsonl", lines))
    assert "line 2, prompt: appears twice" in said
    assert "line 3, y: appears twice" in said


@pytest.mark.parametrize(
    "column", [name for name in BacklogRow.model_fields if name not in ("prompt", "messages")]
)
def test_nan_is_not_given_in_every_column_and_format(tmp_path: Path, column: str) -> None:
    """A conversation called "nan" would put one customer's text before another's."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    line = f'{{"prompt": "a", "{column}": NaN}}\n'
    table = pa.table({"prompt": ["a", "b"], column: [float("nan")] * 2})
    parquet.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", line.encode() * 2)
    write(tmp_path / "a.csv", f"prompt,{column}\na,NaN\nb,nan\n".encode())
    write_book(tmp_path / "a.xlsx", [["prompt", column], ["a", "#N/A"], ["b", None]])
    for suffix in ("jsonl", "csv", "xlsx", "parquet"):
        rows = rows_of(read_backlog(tmp_path / f"a.{suffix}"))
        assert [row.id for row in rows] == ["1", "2"]
        assert {row.model_fields_set - {"id", "prompt"} == set() for row in rows} == {True}


def test_whole_numbers_of_a_data_frame_are_names_without_a_point(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"id": 7.0, "prompt": "a", "conversation": 12.0}\n')
    (row,) = rows_of(read_backlog(path))
    assert (row.id, row.conversation) == ("7", "12")


def write_book(path: Path, rows: list[list[Any]], title: str = "Tickets") -> Path:
    book = Workbook(write_only=True)
    sheet = book.create_sheet(title)
    for row in rows:
        sheet.append(row)
    other = book.create_sheet("Other")
    other.append(["prompt"])
    other.append(["from the other sheet"])
    book.save(path)
    return path


def test_first_sheet_is_read_and_another_one_when_named(tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx", [[None], ["id", "prompt", None], [1, 4711, None], []])
    backlog = read_backlog(path)
    (row,) = rows_of(backlog)
    assert (row.id, row.prompt) == ("1", "4711")
    assert backlog.describe() == "sheet 'Tickets', 1 row, 2 columns; id, prompt"
    (row,) = rows_of(read_backlog(path, Layout(sheet="Other")))
    assert row.prompt == "from the other sheet"
    assert "It has 'Tickets', 'Other'." in refused(path, Layout(sheet="Third"))


def test_sheet_names_its_bad_rows(tmp_path: Path) -> None:
    rows = [["id", "prompt", "max_tokens"], ["a", "b", 0], ["a", "c"], ["d", "e", None, "f"]]
    said = refused(write_book(tmp_path / "a.xlsx", rows))
    assert "line 2, max_tokens: should be greater than or equal to 1" in said
    assert "line 3, id: 'a' is the id of line 2 already" not in said
    rows = [["id", "prompt"], [None, None], ["a", " "], ["d", "e", None, "a note"]]
    said = refused(write_book(tmp_path / "b.xlsx", rows))
    assert "has 1 problem" in said
    assert "line 3: must end with a text of the user" in said


def test_cells_right_of_the_header_are_carried_along(tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx", [["prompt"], ["a"], ["b", None, "a note"]])
    backlog = read_backlog(path)
    assert [cells for _, cells in backlog.records()][1] == {
        "prompt": "b", "column 2": None, "column 3": "a note",
    }  # fmt: skip
    assert list(backlog.titles.values()) == ["prompt", "", ""]


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_workbook_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreadsheet, "MAX_OTHER_BYTES", 1 << 20)
    path = packed(tmp_path / "a.xlsx", {"xl/sharedStrings.xml": b" " * (2 << 20)})
    assert path.stat().st_size < 10_000
    assert "unpacks to 2 MiB; 1 are read. Save the sheet as CSV." in refused(path)


def test_entities_in_a_workbook_are_refused(tmp_path: Path) -> None:
    good = write_book(tmp_path / "good.xlsx", [["prompt"], ["a"]])
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    sheet = members["xl/worksheets/sheet1.xml"]
    members["xl/worksheets/sheet1.xml"] = bomb + sheet[sheet.index(b"<worksheet") :]
    said = refused(packed(tmp_path / "a.xlsx", members))
    assert "is not readable as XLSX: EntitiesForbidden" in said


@pytest.mark.parametrize("content", [b"", b"\xd0\xcf\x11\xe0 an older file", b"PK\x03\x04 cut"])
def test_file_that_is_no_workbook_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "is not an XLSX file" in refused(write(tmp_path / "a.xlsx", content))


def test_zip_without_a_workbook_is_refused(tmp_path: Path) -> None:
    assert "is not readable as XLSX" in refused(packed(tmp_path / "a.xlsx", {"a.txt": b"a"}))

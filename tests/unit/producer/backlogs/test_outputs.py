"""Results beside the file's own columns, and where they may be written."""

import gc
import gzip
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook

from tests.exports import TITLES, csv_rows, help_desk_csv, help_desk_row, help_desk_xlsx, xlsx_rows
from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.outputs import place
from turnmill.producer.batches.outputs import spreadsheet as sheets
from turnmill.producer.batches.outputs.place import check_place, default_output
from turnmill.producer.batches.outputs.table import Table, is_formula
from turnmill.producer.batches.results import check_results_path, write_results
from turnmill.schemas.batches import BatchResult, ResultError
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Layout
from turnmill.schemas.records.columns import Columns, Template
from turnmill.schemas.turns import TurnState


def answered(backlog: Backlog) -> Iterator[BatchResult]:
    """Each row answered by its prompt, but for the second one."""
    for number, row in sorted(backlog.rows(), key=lambda item: item[0]):
        failed = number == 2
        yield BatchResult(
            id=row.id, row=number, turn_id="turn_1", conversation_id="conv_1", seq=1,
            question=row.all_messages[-1].text,
            state=TurnState.FAILED if failed else TurnState.COMPLETED,
            reply=None if failed else row.all_messages[-1].text, attempts=1,
            error=ResultError(code="engine_failure", message="It broke.") if failed else None,
        )  # fmt: skip


def written(backlog: Backlog, path: Path, **options: Any) -> Path:
    assert write_results(path, answered(backlog), backlog, **options) == backlog.total
    return path


def small_csv(folder: Path, text: str = "id,prompt\na,hi\nb,ho\n", name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_export_of_a_help_desk_keeps_its_columns_and_gains_three(tmp_path: Path) -> None:
    path = help_desk_csv(tmp_path / "export.csv")
    backlog = read_backlog(path, columns=Columns(id="Ticket", prompt="Beschreibung"))
    assert backlog.describe() == (
        "semicolons, cp1252, 300 rows, 9 columns; id = Ticket, prompt = Beschreibung; "
        "7 carried along"
    )
    head, *rows = csv_rows(written(backlog, default_output(path)), ";")
    assert head == ["\ufeffTicket", *TITLES[1:], "reply", "state", "error"]
    assert [row[:9] for row in rows] == [help_desk_row(n) for n in range(1, 301)]
    assert rows[0][9:] == [help_desk_row(1)[6], "completed", ""]
    assert rows[1][9:] == ["", "failed", "engine_failure: It broke."]


def test_workbook_of_a_help_desk_keeps_its_cells_and_gains_three(tmp_path: Path) -> None:
    path = help_desk_xlsx(tmp_path / "export.xlsx")
    backlog = read_backlog(path, columns=Columns(id="Ticket", prompt="Beschreibung"))
    head, *rows = xlsx_rows(written(backlog, default_output(path)))
    given = xlsx_rows(path)
    assert head == [*given[0], "reply", "state", "error"]
    assert [row[:9] for row in rows] == given[1:]
    assert rows[0][9:] == [help_desk_row(1)[6], "completed", None]
    assert isinstance(rows[0][1], datetime)


@pytest.mark.parametrize("suffix", ["csv", "xlsx", "tsv", "csv.gz"])
def test_details_and_the_templated_question_come_beside_the_columns(
    tmp_path: Path, suffix: str
) -> None:
    path = small_csv(tmp_path, "Nr,Text,state\n1,hi,NRW\n2,ho,BY\n")
    backlog = read_backlog(path, columns=Columns(template=Template("Say {Text}")))
    brief = written(backlog, tmp_path / f"brief.{suffix}")
    full = written(backlog, tmp_path / f"full.{suffix}", with_details=True)
    for file in (brief, full):
        if file.suffix == ".gz":
            file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    if suffix == "xlsx":
        heads = [xlsx_rows(file)[:2] for file in (brief, full)]
    else:
        delimiter = "\t" if suffix == "tsv" else ","
        files = (file.with_suffix("") if file.suffix == ".gz" else file for file in (brief, full))
        heads = [csv_rows(file, delimiter)[:2] for file in files]
    # A column that the file has keeps its name.
    assert [c.strip("\ufeff") for c in heads[0][0]] == [
        "Nr", "Text", "state", "question", "reply", "turnmill_state", "error",
    ]  # fmt: skip
    assert heads[0][1][:4] == ["1", "hi", "NRW", "Say hi"]
    assert heads[1][0][3:] == [
        name if name != "state" else "turnmill_state" for name in BatchResult.model_fields
    ]


def test_lines_of_json_keep_their_fields_and_gain_all_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "hi", "tags": ["x"], "vip": true, "n": NaN}\n{"id": 7, "prompt": "ho"}\n'
    )
    lines = written(read_backlog(path), default_output(path)).read_text().splitlines()
    first, second = map(json.loads, lines)
    own = {"id": "1", "prompt": "hi", "tags": ["x"], "vip": True, "n": None}
    assert {name: first[name] for name in own} == own
    assert first["reply"] == "hi" and first["attempts"] == 1 and first["error"] is None
    assert second["id"] == 7 and second["error"]["code"] == "engine_failure"
    assert "question" not in first


def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"prompt": ["hi", "ho"], "score": [1.5, None], "tags": [["x"], []]})
    parquet.write_table(table, tmp_path / "a.parquet")
    backlog = read_backlog(tmp_path / "a.parquet")
    result = parquet.read_table(written(backlog, tmp_path / "r.parquet"))
    assert result.select(table.column_names).equals(table)
    assert result["reply"].to_pylist() == ["hi", None]
    text = parquet.read_table(written(read_backlog(small_csv(tmp_path)), tmp_path / "c.parquet"))
    assert text["prompt"].to_pylist() == ["hi", "ho"]


def test_times_of_parquet_are_read_to_the_microsecond_and_keep_their_zone(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    midnight = 1_764_460_800_000_000_000
    columns = {
        "at": pa.array([midnight, midnight + 1_001], pa.timestamp("ns", "UTC")),
        "day": pa.array([midnight, midnight], pa.timestamp("ns")),
        "clock": pa.array([1_001, None], pa.time64("ns")),
        "took": pa.array([1_000_001_001, None], pa.duration("ns")),
    }
    table = pa.table({"prompt": ["hi", "ho"], **columns})
    parquet.write_table(table, tmp_path / "a.parquet")
    backlog = read_backlog(tmp_path / "a.parquet")
    _, first, second = csv_rows(written(backlog, tmp_path / "r.csv"))
    assert first[1:5] == [
        "2025-11-30 00:00:00+00:00", "2025-11-30", "00:00:00.000001", "0:00:01.000001",
    ]  # fmt: skip
    assert second[1] == "2025-11-30 00:00:00.000001+00:00"
    result = parquet.read_table(written(backlog, tmp_path / "r.parquet"))
    assert result.schema.field("at").type == pa.timestamp("ns", "UTC")


def test_time_of_parquet_that_python_lacks_is_refused(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"prompt": ["hi"], "at": pa.array([2**62], pa.timestamp("us"))})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"is not readable as Parquet: column 'at'"):
        read_backlog(tmp_path / "a.parquet")


def test_workbook_on_a_full_disk_leaves_nothing_that_fails_again(tmp_path: Path) -> None:
    (full := tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        sheets.write_xlsx(full, Table(iter(()), {"prompt": "prompt"}))
    gc.collect()


FORMULAS = ['=HYPERLINK("http://127.0.0.1/x","click")', "+1+1", "@SUM(1)", "-2+3", "\tx", "＝1"]


def test_formulas_are_texts_in_a_spreadsheet_unless_raw(tmp_path: Path) -> None:
    path = tmp_path / "formula.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in FORMULAS))
    backlog = read_backlog(path)
    given = [FORMULAS[0], None, *FORMULAS[2:]]
    for options, mark in (({}, "'"), ({"is_raw": True}, "")):
        name = f"r{len(mark)}"
        head, *rows = csv_rows(written(backlog, tmp_path / f"{name}.csv", **options))
        assert head[0] == ("prompt" if options else "\ufeffprompt")
        assert [row[0] for row in rows] == [f"{mark}{text}" for text in FORMULAS]
        reply = head.index("reply")
        assert [row[reply] for row in rows] == [f"{mark}{t}" if t else "" for t in given]
        sheet = load_workbook(written(backlog, tmp_path / f"{name}.xlsx", **options)).active
        cells = [row[0] for row in sheet.iter_rows(min_row=2)]
        assert [cell.value for cell in cells] == FORMULAS
        kinds = [cell.data_type for cell in cells]
        assert kinds == (["f", *["s"] * 5] if options else ["s"] * 6)
        assert all(cell.quotePrefix for cell in cells) is not bool(options)


@pytest.mark.parametrize("text", ["-5", "-5,30", "+49 170 1234567", "+12.5%", "-1 000,00", "text"])
def test_signed_numbers_are_no_formulas(text: str) -> None:
    assert not is_formula(text)


def test_cell_of_a_sheet_holds_what_excel_allows(tmp_path: Path) -> None:
    rows = [{"prompt": "bell \x07 end", "n": 10**17}, {"prompt": "x" * 40_000, "n": 1}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, first, second = xlsx_rows(written(read_backlog(path), tmp_path / "r.xlsx"))
    assert first[:2] == ["bell \ufffd end", str(10**17)]
    assert len(second[0]) == sheets.MAX_CELL_CHARS
    assert second[0].endswith("[cut: a cell holds no more]")


def test_folder_is_said_to_be_one_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    for folder in (tmp_path, tmp_path / "out.csv"):
        with pytest.raises(InvalidInput, match="is a folder"):
            check_results_path(folder)


def test_sheet_without_room_for_all_rows_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "MAX_ROWS", 2)
    with pytest.raises(InvalidInput, match="a sheet holds 1 rows, these are 2"):
        check_results_path(tmp_path / "r.xlsx", read_backlog(small_csv(tmp_path)))


def test_two_backlogs_of_a_folder_never_share_an_output() -> None:
    names = [
        "tickets.2026-11-27.csv", "tickets.2026-11-28.csv", "tickets.csv", "tickets.csv.gz",
        "tickets.tsv", "tickets.xlsx", "tickets.jsonl", "tickets.ndjson", "tickets.parquet",
        "tickets-results.csv", "tickets", ".csv",
    ]  # fmt: skip
    outputs = [default_output(Path("folder") / name).name for name in names]
    assert outputs[:2] == ["tickets.2026-11-27-results.csv", "tickets.2026-11-28-results.csv"]
    assert len(set(outputs)) == len(names)
    assert not {*outputs} & ({*names} - {"tickets-results.csv"})


@pytest.mark.parametrize("overwrite", [True, False])
def test_backlog_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    path = small_csv(tmp_path)
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "hard.csv").hardlink_to(path)
    for name in ("a.csv", "link.csv", "hard.csv", "../" + tmp_path.name + "/a.csv"):
        with pytest.raises(InvalidInput, match="is the backlog"):
            check_place(tmp_path / name, backlog=path, overwrite=overwrite)


def test_existing_file_is_replaced_on_request_only(tmp_path: Path) -> None:
    path, output = small_csv(tmp_path), small_csv(tmp_path, "old", "old.csv")
    with pytest.raises(InvalidInput, match="replace it with --overwrite"):
        check_place(output, backlog=path)
    backlog = read_backlog(path)
    with pytest.raises(InvalidInput, match="exists already"):
        written(backlog, output)
    assert output.read_text() == "old"
    check_place(output, backlog=path, overwrite=True)
    assert output.read_text() == "old"
    written(backlog, output, overwrite=True)
    assert output.read_text() != "old"


def test_file_system_without_links_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    backlog = read_backlog(small_csv(tmp_path))
    written(backlog, tmp_path / "r.csv")
    with pytest.raises(InvalidInput, match="exists already"):
        written(backlog, tmp_path / "r.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "r.csv"]


def test_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"):
        check_place(tmp_path / "file" / "r.csv")
    with pytest.raises(InvalidInput, match="is a folder"):
        check_place(tmp_path)
    check_place(tmp_path / "new" / "r.csv")
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(place.Path, "touch", lambda *_, **__: _raise(OSError(30, "Read-only")))
    with pytest.raises(InvalidInput, match="Read-only"):
        check_place(tmp_path / "r.csv")


def _raise(error: Exception) -> None:
    raise error


def test_backlog_that_changed_is_not_put_beside_the_replies(tmp_path: Path) -> None:
    path = small_csv(tmp_path)
    backlog = read_backlog(path)
    results = list(answered(backlog))
    small_csv(tmp_path, "id,prompt\nb,ho\na,hello\n")
    with pytest.raises(InvalidInput, match="changed since it was checked"):
        write_results(tmp_path / "r.csv", results, backlog)
    assert not (tmp_path / "r.csv").exists()


def test_results_of_a_named_layout_are_joined_by_the_same_layout(tmp_path: Path) -> None:
    path = small_csv(tmp_path, "id;x\nprompt;y\n")
    path.write_bytes("id^prompt\n1^Größe\n2^ok\n".encode("cp1252"))
    backlog = read_backlog(path, Layout("^", "cp1252"))
    assert csv_rows(written(backlog, tmp_path / "r.csv"), "^")[1][:2] == ["1", "Größe"]

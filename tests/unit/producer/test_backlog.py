"""Backlog files: what is read, what is refused and in which words, and in which order rows come."""

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records import base as backlog_formats
from turnmill.schemas.records.columns import COLUMNS
from turnmill.schemas.turns import Message, Role

SAMPLES = Path(__file__).parents[3] / "infra" / "samples"

ROWS = [
    {"id": "a", "prompt": "Where is my parcel?", "max_tokens": 40, "temperature": 0.5},
    {
        "id": "b",
        "conversation": "k",
        "turn": 1,
        "prompt": "发票怎么开？",
        "stop": ["\n\n", "User:"],
    },
    {"id": "c", "conversation": "k", "turn": 2, "prompt": 'He said "no",\nthen left.'},
    {"id": "d", "messages": [{"role": "user", "content": "Hello"}], "system": "Be brief."},
]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        for row in rows:
            lists = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list)}
            writer.writerow(row | lists)
    return path


def write_xlsx(path: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Tickets")
    sheet.append(columns)
    for row in rows:
        cells = (row.get(name) for name in columns)
        sheet.append([json.dumps(c) if isinstance(c, list) else c for c in cells])
    book.save(path)
    return path


def write_parquet(
    path: Path, rows: list[dict[str, Any]], columns: Sequence[str] | None = None
) -> Path:
    pa = pytest.importorskip("pyarrow")
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_backlog(path)
    return caught.value.message


def rows_of(backlog: Backlog) -> list[BacklogRow]:
    return [row for _, row in backlog.rows()]


@pytest.fixture(params=["jsonl", "ndjson", "jsonl.gz", "csv", "tsv", "csv.gz", "xlsx", "parquet"])
def backlog_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """`ROWS` in every format."""
    path = tmp_path / f"tickets.{request.param}"
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".parquet":
        write_parquet(plain, ROWS)
    elif plain.suffix == ".xlsx":
        write_xlsx(plain, ROWS)
    elif plain.suffix in (".csv", ".tsv"):
        write_csv(plain, ROWS, "\t" if plain.suffix == ".tsv" else ",")
    else:
        write_jsonl(plain, ROWS)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def test_all_formats_give_the_same_rows(backlog_file: Path) -> None:
    backlog = read_backlog(backlog_file)
    assert backlog.total == 4
    assert rows_of(backlog) == [BacklogRow.model_validate(row) for row in ROWS]
    assert [number for number, _ in backlog.rows()] == [1, 2, 3, 4]


def test_row_becomes_messages_and_params(backlog_file: Path) -> None:
    first, second, _, last = rows_of(read_backlog(backlog_file))
    assert first.params.max_tokens == 40
    assert second.params.stop == ("\n\n", "User:")
    assert last.all_messages == (
        Message(role=Role.SYSTEM, content="Be brief."),
        Message(role=Role.USER, content="Hello"),
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 1, 4, 2, 0)])
def test_instructions_hold_for_the_rows_after_them_until_others_come(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """In the order of the turns, wherever the rows stand in the file."""
    systems = [None, "Be brief.", None, "Be kind.", None]
    given = [{"conversation": "k", "turn": turn, "prompt": "?", "system": systems[turn]}
             for turn in order]  # fmt: skip
    alone = {"id": "alone", "prompt": "?"}
    rows = rows_of(read_backlog(write_jsonl(tmp_path / "file.jsonl", [*given, alone])))
    told = sorted((row.turn, row.system) for row in rows if row.turn is not None)
    expected = [None, "Be brief.", "Be brief.", "Be kind.", "Be kind."]
    assert told == list(enumerate(expected))
    assert [row.system for row in rows if row.id == "alone"] == [None]


def test_sample_tickets_are_a_valid_backlog() -> None:
    rows = rows_of(read_backlog(SAMPLES / "tickets.jsonl"))
    turns = defaultdict(int)
    for row in rows:
        turns[row.conversation or row.id] += 1
        assert 40 <= (row.params.max_tokens or 0) <= 80
    assert len(rows) >= 40
    assert sorted(set(turns.values())) == [1, 2, 3, 4]


@pytest.mark.parametrize(("format_name", "count"), [("jsonl", 4), ("csv", 3)])
def test_examples_of_the_page_are_valid(tmp_path: Path, format_name: str, count: int) -> None:
    page = (Path(__file__).parents[3] / "docs" / "backlogs.md").read_text()
    path = tmp_path / f"example.{format_name}"
    path.write_text(page.split(f"```{format_name}\n")[1].split("```")[0])
    assert read_backlog(path).total == count


def test_page_names_every_column() -> None:
    page = (Path(__file__).parents[3] / "docs" / "backlogs.md").read_text()
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", ROWS)
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(one.read_bytes()))
    other = write_jsonl(tmp_path / "other.jsonl", ROWS[:2])
    assert read_backlog(one).fingerprint == read_backlog(tmp_path / "two.jsonl.gz").fingerprint
    assert read_backlog(one).fingerprint != read_backlog(other).fingerprint


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"prompt": "hi"}'), ("a.csv", "prompt\r\nhi\r\n")):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert rows_of(read_backlog(path)) == [BacklogRow(id="1", prompt="hi")]


def test_ids_default_to_the_row_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "a"}\n\n  \n{"prompt": "b", "id": null}\n{"prompt": "c", "id": 7}\n'
    )
    assert [row.id for row in rows_of(read_backlog(path))] == ["1", "2", "7"]


def test_empty_csv_cells_and_rows_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,prompt,max_tokens,stop\nx,hi,,[END]\n,,,\n,ho,5,\n")
    first, second = rows_of(read_backlog(path))
    assert (first.id, first.max_tokens, first.stop) == ("x", None, ("[END]",))
    assert (second.id, second.max_tokens, second.stop) == ("2", 5, ())


def test_csv_holds_values_for_the_chat_template_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,template_kwargs\nhi,"{""enable_thinking"": false}"\nho,\n')
    first, second = rows_of(read_backlog(path))
    assert first.params.template_kwargs == {"enable_thinking": False}
    assert second.params.template_kwargs is None
    path.write_text("prompt,template_kwargs\nhi,enable_thinking\n")
    assert "line 2, template_kwargs: in CSV must be written as JSON" in refused(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"\n") if path.suffix == ".gz" else b"\n\n")
    assert refused(path) == f"'{name}' is empty: it has no rows."


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prmpt": "hi"}, "prmpt: is not a column. Did you mean 'prompt'?"),
        ({"prompt": "a", "maxtokens": 1}, "maxtokens: is not a column. Did you mean 'max_tokens'?"),
        ({"custom_id": 1, "prompt": "a"}, "custom_id: is not a column. Did you mean 'id'?"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens: must not be true or false"),
        ({"id": "a"}, "line 1: needs either prompt or messages"),
        ({"prompt": "a", "messages": []}, "messages: Value should have at least 1 item"),
        ({"prompt": " "}, "line 1: must end with a text of the user"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must end with a text of the user"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "messages.0.role: should be 'system'"),
        ({"prompt": "a\0"}, "prompt: contains a NUL character"),
        ({"prompt": "a", "stop": ["\0"]}, "stop.0: contains a NUL character"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: should be greater than or equal to 1"),
        ({"prompt": "a", "temperature": "hot"}, "temperature: should be a valid number"),
        ({"prompt": "a", "turn": 2}, "line 1: has a turn but no conversation"),
        ({"prompt": "a", "id": "x" * 201}, "id: should have at most 200 characters"),
        ([1], "line 1: is not a JSON object"),
    ],
)
def test_bad_row_is_named_with_its_column(tmp_path: Path, row: Any, problem: str) -> None:
    message = refused(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert problem in message
    assert message.startswith("'a.jsonl' has 1 problem; nothing was accepted.")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "line 1: is not JSON: Expecting ',' delimiter (character 15)"),
        ("[" * 100_000, "line 1: is not JSON that can be read"),
        ('{"seed": ' + "1" * 5000 + "}", "line 1: is not JSON that can be read"),
        ('{"prompt": "\\ud800"}', "line 1, prompt: should be a valid string"),
    ],
    ids=["cut off", "deeply nested", "huge number", "half a surrogate pair"],
)
def test_line_that_is_no_json_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    assert problem in refused(path)


def test_all_bad_lines_are_counted_and_twenty_shown(tmp_path: Path) -> None:
    rows = [{"prompt": "fine"}, *({"prompt": 5} for _ in range(1025))]
    lines = refused(write_jsonl(tmp_path / "a.jsonl", rows)).splitlines()
    assert lines[0] == "'a.jsonl' has 1,025 problems; nothing was accepted."
    assert lines[1] == "  line 2, prompt: should be a valid string"
    assert len(lines) == 22
    assert lines[-1] == "  and 1,005 more"


def test_huge_line_is_refused_without_reading_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_formats, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.write('{"prompt": "a"}\n{"prompt": "')
        file.writelines("x" * (1 << 20) for _ in range(30))
        file.write('"}\n{"prompt": 3}\n')
    tracemalloc.start()
    message = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "line 2: is longer than 1 MiB" in message
    assert "line 3, prompt" in message
    assert peak < 8 << 20


def test_csv_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,promt,id\n1,a,2\n")
    message = refused(path)
    assert "line 1, promt: is not a column. Did you mean 'prompt'?" in message
    assert "line 1, id: appears twice" in message
    path.write_text('id,prompt\n1,"a\nb"\n2\n3,c\n4,"open\n5,d\n')
    message = refused(path)
    assert "line 4: has 1 cells, the header has 2" in message
    assert "line 6: is not CSV: unexpected end of data; is a quote left open?" in message


def test_parquet_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    assert "promt: is not a column" in refused(write_parquet(path, [{"promt": "a"}]))
    message = refused(write_parquet(path, [{"prompt": "a"}, {"prompt": " "}]))
    assert "row 2: must end with a text of the user" in message
    assert refused(write_parquet(path, [], ["prompt"])) == ("'a.parquet' is empty: it has no rows.")
    path.write_bytes(b"PAR1 nonsense")
    assert "'a.parquet' is not readable as Parquet" in refused(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'turnmill[parquet]'" in refused(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.jsonl")
    assert "is a folder" in refused(tmp_path)
    for name in ("a.xls", "a.parquet.gz", "a.xlsx.gz", "a"):
        (tmp_path / name).write_text("a")
        assert "Known are .jsonl, .ndjson, .csv, .tsv, .xlsx, .parquet" in refused(tmp_path / name)
    broken = tmp_path / "a.jsonl.gz"
    for content in (b"plain", gzip.compress(b'{"prompt": "a"}\n' * 100)[:-12]):
        broken.write_bytes(content)
        assert "is not a complete gzip file" in refused(broken)


def test_duplicates_are_refused_with_both_lines(tmp_path: Path) -> None:
    rows = [
        {"id": "2", "conversation": "k", "turn": 2, "prompt": "a"},
        {"prompt": "its id is 2 too"},
        {"conversation": "k", "turn": 1, "prompt": "a"},
        {"conversation": "k", "turn": 2, "prompt": "a"},
        {"conversation": "k", "prompt": "a"},
    ]
    message = refused(write_jsonl(tmp_path / "a.jsonl", rows))
    assert "line 2, id: '2' is the id of line 1 already" in message
    assert "line 4, turn: 2 of conversation 'k' is in line 1 already" in message
    assert "line 5, turn: is given in some rows of the conversation and missing" in message


def test_turns_come_in_order_wherever_they_stand(tmp_path: Path) -> None:
    places = [("k", 3), ("m", 1), ("k", 1), ("n", None), ("k", 2), ("m", 0), ("n", None), ("m", 7)]
    rows = [{"conversation": c, "turn": t, "prompt": f"{c}{t}"} for c, t in places]
    ordered = list(read_backlog(write_jsonl(tmp_path / "a.jsonl", rows)).rows())
    assert [(row.conversation, row.turn) for _, row in ordered if row.conversation == "k"] == [
        ("k", 1), ("k", 2), ("k", 3),
    ]  # fmt: skip
    assert [row.turn for _, row in ordered if row.conversation == "m"] == [0, 1, 7]
    assert [number for number, row in ordered if row.conversation == "n"] == [4, 7]
    assert sorted(number for number, _ in ordered) == list(range(1, 9))


def test_file_edited_after_the_check_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    backlog = read_backlog(path)
    write_jsonl(path, ROWS[:1])
    with pytest.raises(InvalidInput, match="changed since it was checked"):
        rows_of(backlog)


#: Prints the turns' order and the MiB that reading took, in a process without pytest's memory.
_MEASURE = """
import sys
from pathlib import Path
from turnmill.producer.batches.backlog import read_backlog

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

before = peak()
rows = read_backlog(Path(sys.argv[1])).rows()
print(all(row.turn == place % 4 for place, (_, row) in enumerate(rows)), peak() - before)
"""


def test_rows_are_never_all_in_memory(tmp_path: Path) -> None:
    """30 000 rows with every conversation in reverse: the worst order there is."""
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(30_000):
            row = {"conversation": number // 4, "turn": 3 - number % 4, "prompt": "x" * 3500}
            file.write(json.dumps(row) + "\n")
    assert path.stat().st_size > 100_000_000
    output = subprocess.check_output([sys.executable, "-c", _MEASURE, path], text=True)
    in_order, grown_mib = output.split()
    assert in_order == "True"
    assert int(grown_mib) < 30


#: Prints the MiB that checking took.
_MEASURE_CHECK = (
    _MEASURE.partition("before =")[0]
    + """
before = peak()
backlog = read_backlog(Path(sys.argv[1]))
print(peak() - before)
"""
)


@pytest.mark.parametrize("rows", [20_000, 200_000])
def test_checking_holds_neither_ids_nor_conversations_in_memory(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            row = {"id": f"{number:0100}", "conversation": f"{number:0100}", "prompt": "Hi"}
            file.write(json.dumps(row) + "\n")
    output = subprocess.check_output([sys.executable, "-c", _MEASURE_CHECK, path], text=True)
    # Held in memory, they alone were 120 MiB.
    assert int(output) < 40


def test_what_is_wrong_between_rows_is_listed_in_the_order_of_the_lines(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "conversation": "c", "turn": 1, "prompt": "One."},
        {"id": "b", "conversation": "c", "turn": 1, "prompt": "Again."},
        {"id": "a", "prompt": "The id again."},
        {"id": "d", "prompt": "Hi", "max_tokens": -1},
        {"id": "b", "conversation": "c", "prompt": "No turn."},
    ]
    said = refused(write_jsonl(tmp_path / "a.jsonl", rows)).splitlines()
    assert "has 5 problems" in said[0]
    assert [line.split(":")[0].strip() for line in said[1:]] == [
        "line 2, turn", "line 3, id", "line 4, max_tokens", "line 5, id", "line 5, turn",
    ]  # fmt: skip

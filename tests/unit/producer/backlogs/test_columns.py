"""Columns with the names that their owners gave them, and prompts over several of them."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.cli.app import app
from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Layout
from turnmill.schemas.records.columns import Columns, Template

EXPORT = "Ticket;Betreff;Beschreibung;Kunde;Kunde;\n7;Lieferung;Wo ist sie?;A;B;\n8;;Hallo;C;;\n"


def rows_of(backlog: Backlog) -> list[BacklogRow]:
    return [row for _, row in backlog.rows()]


def export(folder: Path, text: str = EXPORT) -> Path:
    path = folder / "export.csv"
    path.write_text(text)
    return path


def refused(path: Path, columns: Columns | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_backlog(path, columns=columns)
    return caught.value.message


def test_columns_are_named_by_options(tmp_path: Path) -> None:
    columns = Columns(id="Ticket", prompt="Beschreibung", conversation="Betreff")
    backlog = read_backlog(export(tmp_path), columns=columns)
    first, second = rows_of(backlog)
    assert (first.id, first.prompt, first.conversation) == ("7", "Wo ist sie?", "Lieferung")
    assert (second.id, second.prompt, second.conversation) == ("8", "Hallo", None)
    assert backlog.describe() == (
        "semicolons, UTF-8, 2 rows, 6 columns; id = Ticket, conversation = Betreff, "
        "prompt = Beschreibung; 3 carried along"
    )


def test_template_makes_one_prompt_of_several_columns(tmp_path: Path) -> None:
    template = Template(r"Subject: {Betreff}\n{ Beschreibung } {{verbatim}}")
    backlog = read_backlog(export(tmp_path), columns=Columns(template=template))
    assert [row.prompt for row in rows_of(backlog)] == [
        "Subject: Lieferung\nWo ist sie? {verbatim}",
        "Subject: \nHallo {verbatim}",
    ]
    assert "prompt = template over Betreff, Beschreibung" in backlog.describe()


def test_template_reads_cells_and_nothing_of_python(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[dict[str, Any]] = [
        {"a": 1.0, "b": {"c": ["d"]}, "a.__class__": "a cell"},
        {"a": float("nan"), "b": True, "a.__class__": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(template=Template("{a}|{b}|{a.__class__}"))
    prompts = [row.prompt for row in rows_of(read_backlog(path, columns=columns))]
    assert prompts == ['1|{"c": ["d"]}|a cell', "|true|"]


def test_row_without_any_column_of_the_template_is_refused(tmp_path: Path) -> None:
    path = export(tmp_path, "a;b;c\n1;2;3\n;;4\n")
    columns = Columns(template=Template("{a}{b}"))
    assert "line 3: the template's columns are empty: every row needs" in refused(path, columns)


@pytest.mark.parametrize("text", ["", "no column", "{{escaped}}", "{}"])
def test_template_without_a_column_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="names no column"):
        Template(text)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("columns", "option"),
    [
        (Columns(prompt="Frage"), "--prompt"),
        (Columns(prompt="Text", id="Frage"), "--id"),
        (Columns(template=Template("{Text} {Frage}")), "--template"),
    ],
)
def test_named_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, columns: Columns, option: str, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text('{"Text": "a", "Nr": 1}\n' if suffix == "jsonl" else "Text,Nr\na,1\n")
    said = refused(path, columns)
    assert f"line 1, Frage: there is no such column ({option}). There are 'Text', 'Nr'" in said


def test_missing_column_is_named_before_the_lines_that_lack_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"Text": "a"}\n' * 30)
    lines = refused(path, Columns(prompt="Frage")).splitlines()
    assert "Frage: there is no such column (--prompt)" in lines[1]
    assert "line 1, Frage: is empty: every row needs what the user says" in lines[2]
    assert lines[-1] == "  and 11 more"


def test_requests_of_openais_batch_files_are_rows(tmp_path: Path) -> None:
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_completion_tokens": 20,
        "temperature": 0.5,
    }
    request = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(request))
    backlog = read_backlog(path)
    (row,) = rows_of(backlog)
    assert (row.id, row.max_tokens, row.temperature) == ("r1", 20, 0.5)
    assert [message.text for message in row.all_messages] == ["Be brief.", "hi"]
    ((_, cells),) = backlog.records()
    assert cells["model"] == "gpt-4o"
    body["response_format"] = {"type": "json_object"}
    path.write_text(json.dumps(request))
    assert "line 1, body.response_format: is not read from a batch request. Give" in refused(path)


def test_keys_that_are_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {f"customer {n}": n for n in range(16_384)}
    path.write_text(json.dumps(row | {"prompt": "a"}))
    assert "more than 16,384 different keys" in refused(path)


def test_export_without_a_prompt_says_how_to_name_it(tmp_path: Path) -> None:
    said = refused(export(tmp_path))
    assert "There are 'Ticket', 'Betreff', 'Beschreibung', 'Kunde', 'Kunde (2)'" in said
    assert "--prompt COLUMN" in said


def test_unknown_columns_are_carried_along_unless_they_are_misspelled(tmp_path: Path) -> None:
    path = export(tmp_path, "prompt,customer\na,b\n")
    assert "; 1 carried along" in read_backlog(path).describe()
    path = export(tmp_path, "prompt,max_token\na,5\n")
    assert "max_token: is not a column. Did you mean 'max_tokens'?" in refused(path)
    assert "--ignore 'max_token'" in refused(path)
    (row,) = rows_of(read_backlog(path, columns=Columns(ignored=("max_token",))))
    assert row.max_tokens is None
    path = export(tmp_path, "Prompt\na\n")
    assert "--prompt 'Prompt'" in refused(path)


def test_ignored_column_is_not_read_whatever_its_name(tmp_path: Path) -> None:
    path = export(tmp_path, "prompt,system\na,CRM\n")
    (row,) = rows_of(read_backlog(path, columns=Columns(ignored=("system",))))
    assert row.system is None


def test_bad_cell_is_named_by_the_column_of_the_file(tmp_path: Path) -> None:
    path = export(tmp_path, f"Ticket;Frage\n{'x' * 201};a\n")
    said = refused(path, Columns(id="Ticket", prompt="Frage"))
    assert "line 2, Ticket: should have at most 200 characters" in said


def test_other_columns_make_another_batch(tmp_path: Path) -> None:
    path = export(tmp_path)
    one = read_backlog(path, columns=Columns(prompt="Beschreibung"))
    same = read_backlog(path, Layout(";", "utf-8"), Columns(prompt="Beschreibung"))
    other = read_backlog(path, columns=Columns(id="Ticket", prompt="Beschreibung"))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_example_of_the_page_is_read_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[4] / "docs" / "backlogs.md").read_text()
    section = page.split("## An export with its own columns")[1].split("\n## ")[0]
    export(tmp_path, section.split("```csv\n")[1].split("```")[0])
    shown = re.search(r"^\$ turnmill (.*)\n((?s:.*?))^```", section, flags=re.MULTILINE)
    assert shown
    command, output = shown.groups()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0
    assert result.output == output


def test_prompt_and_template_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match="either --prompt or --template"):
        Columns(prompt="a", template=Template("{a}"))

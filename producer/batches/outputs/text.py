"""Results as text: JSONL, CSV, TSV, gzipped where the name says so."""

import csv
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from turnmill.producer.batches.outputs.table import Row, Table, defused, flat
from turnmill.schemas.json_lines import one_line
from turnmill.schemas.records.columns import is_absent, text_of


def write_json_lines(path: Path, table: Table) -> None:
    names = table.names
    with _open(path, table, "utf-8") as file:
        for row in table.rows:
            text = json.dumps(
                _json_object(row, table, names),
                ensure_ascii=False, separators=(",", ":"), default=text_of,
            )  # fmt: skip
            file.write(one_line(text) + "\n")


def _json_object(row: Row, table: Table, names: dict[str, str]) -> dict[str, object]:
    cells, result = row
    values = table.values(result)
    # Programs find a row by its id, whether its line names one or not.
    own = {name: cell for name, cell in cells.items() if name != "id" or not is_absent(cell)}
    return {"id": result.id, **own, **{title: values[name] for name, title in names.items()}}


def write_csv(path: Path, table: Table) -> None:
    """Write CSV that a spreadsheet opens: UTF-8 with its mark, formulas behind an apostrophe.

    Raw, the cells are as they are, and nothing stands before the first one.
    """
    cell = flat if table.is_raw else defused
    with _open(path, table, "utf-8" if table.is_raw else "utf-8-sig") as file:
        writer = csv.writer(file, delimiter=table.delimiter)
        writer.writerow(map(cell, table.titles))
        writer.writerows(map(cell, table.cells(row)) for row in table.rows)


@contextmanager
def _open(path: Path, table: Table, encoding: str) -> Iterator[TextIO]:
    if table.is_gzipped:
        with gzip.open(path, "wt", encoding=encoding, newline="") as packed:
            yield cast("TextIO", packed)
    else:
        with path.open("w", encoding=encoding, newline="") as file:
            yield file

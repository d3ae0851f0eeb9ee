"""Results as Parquet."""

from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from turnmill.producer.batches.outputs.table import Row, Table, flat
from turnmill.producer.batches.shapes import Shape
from turnmill.schemas.records.parquet import import_pyarrow

if TYPE_CHECKING:
    import pyarrow

#: Rows in memory at a time.
_ROWS = 1000


def write_parquet(path: Path, table: Table) -> None:
    """Write Parquet. Own columns keep their types if they come from Parquet, else they are text."""
    arrow, parquet = import_pyarrow()
    known = table.schema or [arrow.field(name, arrow.string()) for name in table.own]
    own = [each.with_name(name) for each, name in zip(known, table.own, strict=True)]
    types = _types(arrow, table.shape)
    schema = arrow.schema([*own, *(arrow.field(t, types[n]) for n, t in table.names.items())])
    with parquet.ParquetWriter(path, schema) as writer:
        while page := [_record(row, table) for row in islice(table.rows, _ROWS)]:
            writer.write_table(arrow.Table.from_pylist(page, schema))


def _record(row: Row, table: Table) -> dict[str, object]:
    cells, result = row
    values = table.values(result)
    if table.shape:
        values |= {
            title: flat(values[title])
            for title, kind in zip(table.shape.titles, table.shape.columns.values(), strict=True)
            if kind == "json" and values[title] is not None
        }
    own = {name: cells.get(name) for name in table.own}
    if table.schema is None:
        own = {name: None if cell is None else flat(cell) for name, cell in own.items()}
    return own | {title: values[name] for name, title in table.names.items()}


def _types(arrow: ModuleType, shape: Shape | None) -> "dict[str, pyarrow.DataType]":
    text, number = arrow.string(), arrow.int64()
    kinds = {
        "text": text, "integer": number, "number": arrow.float64(), "boolean": arrow.bool_(),
        "json": text,
    }  # fmt: skip
    columns = zip(shape.titles, shape.columns.values(), strict=True) if shape else ()
    return {title: kinds[kind] for title, kind in columns} | {
        "id": text, "row": number, "turn_id": text, "conversation_id": text, "seq": number,
        "question": text, "state": text, "reply": text, "finish_reason": text,
        "prompt_tokens": number, "completion_tokens": number, "attempts": number,
        "latency_s": arrow.float64(), "error": arrow.struct({"code": text, "message": text}),
        "sources": text,
    }  # fmt: skip

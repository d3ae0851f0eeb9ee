"""Parquet, read in batches of rows."""

from collections.abc import Iterator
from types import ModuleType

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Reading, Record, without_nan

#: Rows that are turned into Python objects at a time.
_ROWS = 256


def read(reading: Reading) -> Iterator[Record]:
    arrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(reading.path) as file:
            names = reading.name_columns(file.schema_arrow.names, 1)
            if names is None:
                return
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                columns = [column.to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, map(without_nan, cells), strict=True))
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"'{reading.path.name}' is not readable as Parquet: {reason}") from None


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`, which only Parquet files need. Raises `InvalidInput`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInput("Parquet files need: pip install 'turnmill[parquet]'") from None
    return pyarrow, pyarrow.parquet

"""Parquet, read in batches of rows."""

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Reading, Record, without_nan

if TYPE_CHECKING:
    import pyarrow

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
                columns = [
                    _cells(arrow, name, column)
                    for name, column in zip(names, batch.columns, strict=True)
                ]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, map(without_nan, cells), strict=True))
    except arrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"'{reading.path.name}' is not readable as Parquet: {reason}") from None


def _cells(arrow: ModuleType, name: str, column: "pyarrow.Array") -> list[object]:
    """Return the cells of a column. Python's times have microseconds: nanoseconds are cut off.

    Raises:
        ArrowException: a cell is no value of Python, such as a time after the year 9999.
    """
    kind = column.type
    if arrow.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(arrow.timestamp("us", kind.tz), safe=False)
    elif arrow.types.is_time64(kind) and kind.unit == "ns":
        column = column.cast(arrow.time64("us"), safe=False)
    elif arrow.types.is_duration(kind) and kind.unit == "ns":
        column = column.cast(arrow.duration("us"), safe=False)
    try:
        cells: list[object] = column.to_pylist()
    except (ValueError, OverflowError) as error:
        raise arrow.ArrowException(f"column '{name[:80]}': {error}") from None
    return cells


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`, which only Parquet files need. Raises `InvalidInput`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInput("Parquet files need: pip install 'turnmill[parquet]'") from None
    return pyarrow, pyarrow.parquet

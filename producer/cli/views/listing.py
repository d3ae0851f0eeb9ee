"""Lists of things: rows with an id or a name, whole at any width of the terminal."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table

#: Wider than any row: what a table asks for when nothing limits it.
_UNLIMITED = 10_000
#: Cells between two columns, and left of those that stand below their row's first one.
_GAP = 2
#: Cells in which a folded text still reads well beside other columns.
_READABLE = 20


class Listing(Table):
    """A table in which nothing is cut: ids and names are copied into the next command.

    Texts are folded, the widest first. Where they would become too narrow to read, the first column
    has a line of its own, and the others stand below it.
    """

    def __init__(self, *titles: str) -> None:
        super().__init__(*titles, box=None)
        for column in self.columns:
            column.overflow = "fold"
        self.columns[0].no_wrap = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first_width, *wanted = self._widths(console, options)
        beside = _fit(wanted, options.max_width - first_width - _GAP)
        is_readable = all(
            width >= min(was, _READABLE) for width, was in zip(beside, wanted, strict=True)
        )
        if is_readable or len(self.columns) == 1:
            yield from super().__rich_console__(console, options)
            return
        widths = _fit(wanted, options.max_width - 1)
        first, *others = ([column.header, *column.cells] for column in self.columns)
        styles = ["bold", *(str(row.style or "") for row in self.rows)]
        for name, cells, style in zip(first, zip(*others, strict=True), styles, strict=True):
            yield Padding(name, (0, 0, 0, 1), style=style, expand=False)
            yield self._below(cells, widths, style)

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int]:
        """How wide the columns are when nothing is folded, in cells."""
        unlimited = options.update_width(_UNLIMITED)
        return [
            max(
                Measurement.get(console, unlimited, cell).maximum
                for cell in (column.header, *column.cells)
            )
            for column in self.columns
        ]

    def _below(
        self, cells: Sequence[RenderableType], widths: Sequence[int], style: str
    ) -> RenderableType:
        """A row without its first column."""
        line = Table.grid(padding=(0, _GAP, 0, 0))
        for column, width in zip(self.columns[1:], widths, strict=True):
            line.add_column(width=width, overflow="fold", justify=column.justify)
        line.add_row(*cells, style=style)
        return Padding(line, (0, 0, 0, 1 + _GAP), expand=False)


def _fit(widths: Sequence[int], room: int) -> list[int]:
    """Narrow the widest columns until all fit, with the gaps between them."""
    fitted = list(widths)
    while sum(fitted) + _GAP * len(fitted) > room and max(fitted, default=0) > 1:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted

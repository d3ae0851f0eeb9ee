"""Progress on a terminal: a bar with the time left, and lines that stay."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from turnmill.producer.cli.views.texts import plain


class Bars:
    """A bar for the stage that runs, below the step's own, which moves all the time; notes above
    both. A pipeline's `Progress`.
    """

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars
        self._stage: TaskID | None = None
        self._step: TaskID | None = None

    def start(self, total: float, label: str) -> None:
        if self._stage is not None:
            self._bars.remove_task(self._stage)
        self._stage = self._bars.add_task(plain(label).plain, total=total)

    def advance(self, done: float = 1) -> None:
        if self._stage is not None:
            self._bars.advance(self._stage, done)

    def note(self, text: str) -> None:
        """Say that a step begins. Loading and saving models are no stages, and take long too."""
        self._console.print(plain(text))
        if self._step is not None:
            self._bars.remove_task(self._step)
        self._step = self._bars.add_task(plain(text).plain, total=None)


@contextmanager
def showing_bars(console: Console) -> Iterator[Bars]:
    """Show bars until the block ends; on a pipe only the notes."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        yield Bars(console, bars)

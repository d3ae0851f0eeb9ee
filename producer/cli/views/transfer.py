"""The progress of a download: a bar in a terminal, a line every few seconds in a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from turnmill.producer.cli.views.texts import plain

#: Between two lines in a pipe, seconds.
EVERY_S = 5.0

#: Receives the bytes that are there, and all of them.
Report = Callable[[int, int], None]


@contextmanager
def showing_transfer(console: Console, what: str) -> Iterator[Report]:
    """Show how far a transfer is, until the block ends."""
    if not console.is_terminal:
        yield _Lines(console, what).report
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, console: Console, what: str) -> None:
        self._console = console
        self._what = what
        self._began_at: float | None = None
        self._began_with = 0
        self._said_at = 0.0

    def report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began_at is None:
            self._began_at, self._began_with = now, done
        if now - self._said_at < EVERY_S:
            return
        self._said_at = now
        share = done / total if total else 1.0
        text = f"{self._what}: {share:.0%} of {decimal(total)}"
        if rate := self._rate(done, now):
            text += f", {decimal(int(rate))}/s, {(total - done) / rate:.0f} s left"
        self._console.print(plain(text))

    def _rate(self, done: int, now: float) -> float:
        """Bytes a second; what an earlier download left does not count."""
        seconds = now - (self._began_at or now)
        return (done - self._began_with) / seconds if seconds > 0 else 0.0

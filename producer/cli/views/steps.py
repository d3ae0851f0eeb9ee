"""The steps of a start: in a terminal the running one with its seconds, in a pipe a line each."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from turnmill.producer.cli.views.texts import plain

#: What takes long, and why.
_LONG = {
    "Starting the worker": "Starting the worker (its first start fetches and converts the model)"
}


class Steps:
    """Call it with each step; within `with` a terminal shows the running one move."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, text: str) -> None:
        text = _LONG.get(text, text)
        if self._bars is None:
            self._console.print(plain(text), style="dim")
            return
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.add_task(text, total=None)

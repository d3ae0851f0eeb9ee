"""What a person sees of a batch: a bar while it runs, then some replies and a summary.

Everything but `watch` turns values into renderables. Texts of users and models are shown
as they are: their brackets are no markup, their control characters never reach the terminal.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.batches import Batch, BatchFailures, BatchProgress, BatchResult
from turnmill.schemas.errors import TransientError
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.turns import TurnState

#: How often the bar is drawn on a terminal.
REFRESH_S = 0.25

#: How often a line is printed where there is no terminal.
LINE_EVERY_S = 5.0

#: A batch of which no turn ends for so long gets a word on why.
QUIET_S = 5.0

#: Reading the progress of a large batch is work for the database: at most this share of the time.
_READING_SHARE = 0.1

_BAR_CELLS = 30
_QUESTION_CELLS = 60
_REPLY_CELLS = 160


Show = Callable[[BatchProgress | None, str], None]


def watch(
    read: Callable[[], BatchProgress],
    console: Console,
    *,
    resume_command: str,
    explain: Callable[[], str] = str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> BatchProgress | None:
    """Show the progress until the batch is done; None when Ctrl-C ended the watching.

    A database that is away for a while is waited for: the turns are not lost with it. `explain`
    says why no turn ends; it is asked when none has for a while.
    """
    progress = None
    stall = _Stall(explain, clock)
    try:
        with _display(console, clock) as show:
            while progress is None or not progress.is_done:
                started, note = clock(), ""
                try:
                    progress = read()
                    note = stall.note(progress)
                except TransientError as error:
                    note = f"{error.message} Still watching."
                show(progress, note)
                if progress is None or not progress.is_done:
                    sleep(max(REFRESH_S, (clock() - started) / _READING_SHARE))
    except KeyboardInterrupt:
        console.print(stopped_watching(resume_command), soft_wrap=True)
        return None
    return progress


class _Stall:
    """Notes that no turn of a batch ends, and asks why now and then."""

    def __init__(self, explain: Callable[[], str], clock: Callable[[], float]) -> None:
        self._explain = explain
        self._clock = clock
        self._settled = -1
        self._next_at = 0.0
        self._said = ""

    def note(self, progress: BatchProgress) -> str:
        """The reason, or an empty string while turns end."""
        if progress.settled != self._settled or progress.is_done:
            self._settled, self._said = progress.settled, ""
            self._next_at = self._clock() + QUIET_S
        elif self._clock() >= self._next_at:
            self._said = self._explain()
            self._next_at = self._clock() + QUIET_S
        return self._said


@contextmanager
def _display(console: Console, clock: Callable[[], float]) -> Iterator[Show]:
    """A bar on a terminal, a line now and then in a log."""
    if not console.is_terminal:
        yield _line_printer(console, clock)
        return
    with Live(console=console, auto_refresh=False) as live:

        def draw(progress: BatchProgress | None, note: str) -> None:
            live.update(render_progress(progress, note), refresh=True)

        yield draw


def _line_printer(console: Console, clock: Callable[[], float]) -> Show:
    next_at = clock()

    def print_line(progress: BatchProgress | None, note: str) -> None:
        nonlocal next_at
        is_done = progress is not None and progress.is_done
        if clock() >= next_at or is_done:
            next_at = clock() + LINE_EVERY_S
            text = describe_progress(progress) if progress else ""
            console.print(plain("\n".join(filter(None, (text, note)))), soft_wrap=True)

    return print_line


def describe_progress(progress: BatchProgress) -> str:
    """`12/40 done, 1 failed, 3.2 turns/s, 118 tokens/s, 0:09 left`."""
    parts = [f"{progress.settled:,}/{progress.total:,} done"]
    if progress.accepted < progress.total:
        parts.append(f"{progress.accepted:,} accepted")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if not progress.is_done:
        parts.extend(_pace(progress))
    return ", ".join(parts)


def _pace(progress: BatchProgress) -> Iterator[str]:
    left_s = progress.left_s
    if progress.is_cancelled:
        yield "being cancelled"
        return
    if progress.is_paused:
        yield "paused"
        return
    if left_s is None:
        yield "estimating the time left"
        return
    yield f"{progress.turns_per_s:.1f} turns/s"
    yield f"{progress.tokens_per_s or 0:,.0f} tokens/s"
    yield f"{format_clock(left_s)} left"


def render_progress(progress: BatchProgress | None, note: str = "") -> RenderableType:
    if progress is None:
        return Text(note, style="yellow")
    bar = ProgressBar(total=progress.total, completed=progress.settled, width=_BAR_CELLS)
    grid = Table.grid(padding=(0, 1))
    grid.add_row(bar, Text(describe_progress(progress)))
    if note:
        warning = plain(note)
        warning.stylize("yellow")
        grid.add_row("", warning)
    return grid


def stopped_watching(resume_command: str) -> Text:
    return Text.assemble(
        "Stopped watching; nothing is lost, the turns go on without this command.\n",
        "Watch again and write the results: ",
        (resume_command, "bold"),
    )


def batches_table(batches: Iterable[Batch], ended: Mapping[UUID, int]) -> Table:
    """The batches, with how many of their turns have ended."""
    table = Listing("batch", "file", "bot", "turns", "ended", "state", "submitted")
    for batch in batches:
        count = ended.get(batch.batch_id, 0)
        table.add_row(
            show_id(Prefix.BATCH, batch.batch_id),
            plain(batch.name),
            plain(batch.bot),
            f"{batch.total:,}",
            f"{count:,}",
            batch.state(count),
            f"{batch.created_at:%Y-%m-%d %H:%M}",
        )
    return table


def replies_table(results: Iterable[BatchResult]) -> Table:
    """Questions with their replies, each shortened to a few lines."""
    table = Table(
        Column("id", no_wrap=True, max_width=20, overflow="ellipsis"),
        # Chinese has no spaces to break a line at.
        Column("question", ratio=2, overflow="fold"),
        Column("reply", ratio=3, overflow="fold"),
        expand=True,
    )
    for result in results:
        table.add_row(
            shorten(result.id, 20), shorten(result.question, _QUESTION_CELLS), _reply(result)
        )
    return table


def summary(progress: BatchProgress, results_path: Path | None = None) -> Table:
    """The figures of a batch, one to a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for label, value in _figures(progress):
        grid.add_row(label, Text(value))
    if results_path is not None:
        grid.add_row("results", Text(str(results_path), style="bold"))
    return grid


def shorten(text: str, cells: int) -> Text:
    """One line of at most so many terminal cells; a Chinese character takes two."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    shortened = Text(line)
    shortened.truncate(cells, overflow="ellipsis")
    return shortened


def format_clock(seconds: float) -> str:
    """`0:09`, `12:05`, `3:00:41`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _reply(result: BatchResult) -> Text:
    if result.error is not None:
        text = shorten(f"{result.error.code}: {result.error.message}", _REPLY_CELLS)
        text.stylize("red")
        return text
    if result.reply is None:
        return Text(result.state, style="dim")
    return shorten(result.reply, _REPLY_CELLS)


def _figures(progress: BatchProgress) -> Iterator[tuple[str, str]]:
    turns = [
        f"{progress.completed:,} of {progress.total:,} completed",
        f"{progress.failed:,} failed",
    ]
    others = {state: n for state, n in progress.states.items() if state not in _NAMED_STATES}
    yield "turns", ", ".join([*turns, *(f"{n:,} {state}" for state, n in others.items())])
    yield from (("failed", _failure(each)) for each in progress.failures)
    if progress.cut_count:
        yield "cut", _cut(progress)
    yield "attempts", f"{progress.attempts:,}"
    if progress.latency_p50_s is not None and progress.latency_p95_s is not None:
        figures = f"p50 {progress.latency_p50_s:.2f} s, p95 {progress.latency_p95_s:.2f} s"
        yield "latency", f"{figures} from acceptance to reply"
    if progress.answer_p50_s is not None and progress.answer_p95_s is not None:
        figures = f"p50 {progress.answer_p50_s:.2f} s, p95 {progress.answer_p95_s:.2f} s"
        yield "answering", f"{figures} from first attempt to reply"
    tokens = f"{progress.prompt_tokens:,} prompt, {progress.completion_tokens:,} completion"
    if progress.wall_s:
        tokens += f", {progress.completion_tokens / progress.wall_s:,.1f} tokens/s"
    yield "tokens", tokens
    if progress.wall_s is not None:
        yield "wall time", format_clock(progress.wall_s)


def _cut(progress: BatchProgress) -> str:
    """`39 of 40 replies end at their limit; …`, of a large batch by a sample."""
    of = "replies" if progress.sampled_count == progress.completed else "sampled replies"
    return (
        f"{progress.cut_count:,} of {progress.sampled_count:,} {of} end at their limit; "
        "--max-tokens allows more"
    )


def _failure(failures: BatchFailures) -> str:
    """`12 attempts_used_up, such as row 'k-2': The turn failed 5 times …`."""
    text = f"{failures.count:,} {failures.error_code}"
    if failures.example is None:
        return text
    message = shorten(failures.message or "", _REPLY_CELLS)
    return f"{text}, such as row '{shorten(failures.example, 40)}': {message}"


#: Counted as completed and failed; the others are named with their number.
_NAMED_STATES = frozenset({TurnState.COMPLETED, TurnState.FAILED, TurnState.PARKED})

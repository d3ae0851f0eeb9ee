"""The run of a backlog file: check it, submit it, watch it, and write what came of it."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.progress import find_open, progress, summarize
from turnmill.producer.batches.results import check_results_path, results, write_results
from turnmill.producer.batches.shapes import Shape
from turnmill.producer.batches.submission import submit
from turnmill.producer.cli.context import System
from turnmill.producer.cli.views import batch_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.operations.why import Explainer
from turnmill.schemas.batches import Batch, BatchProgress
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.records.base import Layout
from turnmill.schemas.records.columns import Columns
from turnmill.schemas.turns import GenerationParams

console = make_console()

#: Replies shown when a batch is done.
SHOWN_REPLIES = 6

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Output:
    """Where a run's results go, and how they are written."""

    path: Path
    overwrite: bool = False
    is_raw: bool = False
    with_details: bool = False
    #: What the replies are held to, and become columns of.
    shape: Shape | None = None


def check_backlog(
    file: Path, layout: Layout | None = None, columns: Columns | None = None
) -> Backlog:
    """Check a file and say what was taken. Raises `InvalidInput`."""
    with console.status(plain(f"Checking {file}")):
        backlog = read_backlog(file, layout, columns)
    console.print(plain(f"{file.name}: {backlog.describe()}"), soft_wrap=True)
    return backlog


def answer_backlog(
    system: System,
    backlog: Backlog,
    output: Output,
    *,
    bot: str | None = None,
    name: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    again: str | None = None,
) -> int:
    """Submit, watch, write and show; the exit status.

    `again` is the command that does all this once more, for people who stop watching.
    """
    check_results_path(output.path, backlog)
    overrides = GenerationParams(
        max_tokens=max_tokens,
        temperature=temperature,
        response_format=output.shape.format if output.shape else None,
    )
    chosen = bot or system.settings.engine.model_name
    batch = _submit(system, chosen, backlog, overrides, name)
    shown = show_id(Prefix.BATCH, batch.batch_id)
    turns = "1 turn" if backlog.total == 1 else f"{backlog.total:,} turns"
    console.print(plain(f"{turns} of {backlog.path.name}: {shown}"), soft_wrap=True)
    if watch_batch(system, batch, output.path, again) is None:
        return INTERRUPTED
    _write(system, batch, backlog, output)
    first = results(system.database, system.tenant_id, batch.batch_id, limit=SHOWN_REPLIES)
    console.print(batch_view.replies_table(first))
    done = summarize(system.database, system.tenant_id, batch.batch_id)
    console.print(batch_view.summary(done, output.path))
    if done.failed:
        console.print(
            plain(
                "When their cause is gone, have the failed rows answered anew, then run this again "
                "with --overwrite: "
                f"turnmill batch retry {shown} --failed{system.suffix}"
            ),
            soft_wrap=True,
        )
    return 0 if done.completed == done.total else 1


def _write(system: System, batch: Batch, backlog: Backlog, output: Output) -> None:
    rows = results(system.database, system.tenant_id, batch.batch_id)
    try:
        write_results(
            output.path, rows, backlog,
            shape=output.shape, with_details=output.with_details,
            is_raw=output.is_raw, overwrite=output.overwrite,
        )  # fmt: skip
    except InvalidInput as error:
        raise InvalidInput(
            f"{error.message}\nThe batch is done and its replies are kept. Write them elsewhere, "
            "without the columns of the file (--file adds them): turnmill batch results "
            f"{show_id(Prefix.BATCH, batch.batch_id)}{system.suffix} -o NEW.csv"
        ) from None


def _submit(
    system: System, bot: str, backlog: Backlog, overrides: GenerationParams, name: str | None
) -> Batch:
    with bar("Submitting", backlog.total) as on_accepted:
        return submit(
            system.database,
            system.tenant_id,
            bot,
            backlog,
            overrides,
            name=name,
            on_found=lambda batch: _say_found(system, batch),
            on_accepted=on_accepted,
        )


def _say_found(system: System, batch: Batch) -> None:
    """Say that a batch is no new one: its replies are those of the bot as it was then."""
    now = progress(system.database, system.tenant_id, batch.batch_id)
    submitted = f"This file was submitted before, on {batch.created_at:%Y-%m-%d at %H:%M %Z}"
    if now.is_done:
        said = (
            f"{submitted}. The replies are those of then, whatever has changed in the bot or its "
            "model. To have it answered anew, give the batch another name: --name NAME"
        )
    else:
        said = f"{submitted}: {now.settled:,} of {now.total:,} rows have ended, the others follow."
    console.print(plain(said), soft_wrap=True)


@contextmanager
def bar(doing: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of rows while something goes through a batch; call what it gives with their number."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, completed=count)


def watch_batch(
    system: System, batch: Batch, output: Path, again: str | None = None
) -> BatchProgress | None:
    shown = show_id(Prefix.BATCH, batch.batch_id)
    write = f"turnmill batch results {shown} -o {shlex.quote(str(output))}{system.suffix}"
    return batch_view.watch(
        lambda: progress(system.database, system.tenant_id, batch.batch_id),
        console,
        resume_command=again or f"turnmill batch status --watch {shown}{system.suffix} && {write}",
        explain=lambda: _explain(system, batch),
    )


def _explain(system: System, batch: Batch) -> str:
    """Why a turn of the batch is not answered yet; what holds for one holds for most."""
    turn_id = find_open(system.database, batch.batch_id)
    why = turn_id and Explainer(system.database, system.settings).explain(turn_id)
    return why.describe("Its last turn") if why else ""

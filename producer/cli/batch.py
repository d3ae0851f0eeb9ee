"""`turnmill batch`: backlog files, from submission to results."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from turnmill.producer.batches.backlog import Backlog, read_backlog
from turnmill.producer.batches.results import check_results_path, results, write_results
from turnmill.producer.batches.submission import find_batch, list_batches, progress, submit
from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.views import batch_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.batches import Batch, BatchProgress
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.turns import GenerationParams

app = typer.Typer(help="Backlog files: JSONL, CSV, Parquet.", no_args_is_help=True)
console = make_console()

#: Replies shown when a batch is done.
SHOWN_REPLIES = 10

INTERRUPTED = 130

BatchId = Annotated[str, typer.Argument(help="batch_… or the start of it.")]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The backlog file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results file; beside FILE if left out.")
    ] = None,
    bot: Annotated[str | None, typer.Option(help="Which bot answers.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Runs the same file again, as a batch of this name.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="For all rows.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="For all rows.")] = None,
    tenant: TenantOption = None,
) -> None:
    """Answer every row of a backlog file and write the results.

    Started again after an interruption it goes on where it stopped.

    Example: turnmill batch run tickets.csv -o answers.csv --max-tokens 80
    """
    output = output or file.with_name(f"{file.name.split('.')[0]}-results.jsonl")
    with open_system(tenant=tenant) as system:
        try:
            status = answer_backlog(
                system, file, output, bot=bot, name=name,
                max_tokens=max_tokens, temperature=temperature,
            )  # fmt: skip
        except KeyboardInterrupt:
            console.print("Stopped; nothing is lost. Run the same again to submit the other rows.")
            status = INTERRUPTED
    raise typer.Exit(status)


@app.command()
def status(
    batch_id: Annotated[str | None, typer.Argument(help="All batches when left out.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it is done.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Show how far a batch is.

    Example: turnmill batch status --watch batch_01a2
    """
    with open_system(tenant=tenant) as system:
        if batch_id is None:
            console.print(_overview(system))
            return
        batch = find_batch(system.database, system.tenant_id, batch_id)
        if watch:
            if _watch(system, batch, Path("results.jsonl")) is None:
                raise typer.Exit(INTERRUPTED)
        else:
            now = progress(system.database, system.tenant_id, batch.batch_id)
            console.print(batch_view.describe_progress(now, batch_view.Pace()))
            console.print(batch_view.summary(now, None))


@app.command("results")
def write(
    batch_id: BatchId,
    output: Annotated[Path, typer.Option("--output", "-o", help=".jsonl, .csv or .parquet")],
    tenant: TenantOption = None,
) -> None:
    """Write what a batch has so far.

    Example: turnmill batch results batch_01a2 -o answers.parquet
    """
    check_results_path(output)
    with open_system(tenant=tenant) as system:
        batch = find_batch(system.database, system.tenant_id, batch_id)
        count = write_results(output, results(system.database, system.tenant_id, batch.batch_id))
    console.print(plain(f"{count:,} rows in {output}"), soft_wrap=True)


def answer_backlog(
    system: System,
    file: Path,
    output: Path,
    *,
    bot: str | None = None,
    name: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> int:
    """Submit, watch, write and show; the exit status."""
    check_results_path(output)
    with console.status(plain(f"Checking {file}")):
        backlog = read_backlog(file)
    overrides = GenerationParams(max_tokens=max_tokens, temperature=temperature)
    chosen = bot or system.settings.engine.model_name
    batch = _submit(system, chosen, backlog, overrides, name)
    console.print(
        plain(f"{backlog.total:,} turns of {file.name}: {show_id(Prefix.BATCH, batch.batch_id)}"),
        soft_wrap=True,
    )
    done = _watch(system, batch, output)
    if done is None:
        return INTERRUPTED
    write_results(output, results(system.database, system.tenant_id, batch.batch_id))
    first = results(system.database, system.tenant_id, batch.batch_id, limit=SHOWN_REPLIES)
    console.print(batch_view.replies_table(first))
    console.print(batch_view.summary(done, output))
    return 0 if done.completed == done.total else 1


def _submit(
    system: System, bot: str, backlog: Backlog, overrides: GenerationParams, name: str | None
) -> Batch:
    columns = (TextColumn("Submitting"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=backlog.total)
        return submit(
            system.database,
            system.tenant_id,
            bot,
            backlog,
            overrides,
            name=name,
            on_accepted=lambda count: bar.update(task, completed=count),
        )


def _watch(system: System, batch: Batch, output: Path) -> BatchProgress | None:
    shown = show_id(Prefix.BATCH, batch.batch_id)
    write = f"turnmill batch results {shown} -o {shlex.quote(str(output))}{system.suffix}"
    return batch_view.watch(
        lambda: progress(system.database, system.tenant_id, batch.batch_id),
        console,
        resume_command=f"turnmill batch status --watch {shown}{system.suffix} && {write}",
    )


def _overview(system: System) -> Table:
    table = Table("batch", "file", "bot", "turns", "submitted", box=None)
    table.columns[0].no_wrap = True
    for batch in list_batches(system.database, system.tenant_id):
        table.add_row(
            show_id(Prefix.BATCH, batch.batch_id),
            plain(batch.name),
            plain(batch.bot),
            f"{batch.total:,}",
            f"{batch.created_at:%Y-%m-%d %H:%M}",
        )
    return table

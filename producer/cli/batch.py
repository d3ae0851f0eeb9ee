"""`turnmill batch`: backlog files, from submission to results."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from turnmill.producer.batches import control
from turnmill.producer.batches.backlog import check_backlog_path
from turnmill.producer.batches.lookup import find_batch, list_batches
from turnmill.producer.batches.outputs.place import check_place, default_output
from turnmill.producer.batches.progress import count_ended, progress, summarize
from turnmill.producer.batches.results import check_results_path, results, write_results
from turnmill.producer.batches.shapes import read_shape
from turnmill.producer.cli.backlogs.answering import (
    INTERRUPTED,
    Output,
    answer_backlog,
    bar,
    check_backlog,
    watch_batch,
)
from turnmill.producer.cli.backlogs.options import (
    ConversationOption,
    DelimiterOption,
    DetailsOption,
    EncodingOption,
    HeaderOption,
    IdOption,
    IgnoreOption,
    OverwriteOption,
    PreviewOption,
    PromptOption,
    RawOption,
    SchemaOption,
    SheetOption,
    TemplateOption,
    columns_of,
    layout_of,
)
from turnmill.producer.cli.backlogs.preview import preview as show_preview
from turnmill.producer.cli.backlogs.preview import say_estimate
from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.lists.shapes import BatchPage, ShownProgress
from turnmill.producer.cli.views import batch_view
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.batches import Batch
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.turns import MAX_TOKENS

app = typer.Typer(help="Backlog files: JSONL, CSV, XLSX, Parquet.", no_args_is_help=True)
console = make_console()

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
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS, help="For all rows.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="For all rows.")] = None,
    prompt: PromptOption = None,
    template: TemplateOption = None,
    id: IdOption = None,
    conversation: ConversationOption = None,
    ignore: IgnoreOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    sheet: SheetOption = None,
    header: HeaderOption = None,
    schema: SchemaOption = None,
    preview: PreviewOption = None,
    overwrite: OverwriteOption = False,
    raw: RawOption = False,
    details: DetailsOption = False,
    tenant: TenantOption = None,
) -> None:
    """Answer every row of a backlog file and write the results.

    Started again after an interruption it resumes from its last accepted row.

    Example: turnmill batch run tickets.csv -o answers.csv --max-tokens 80

    Example: turnmill batch run export.xlsx --prompt Description --preview 5

    Example of typed columns: turnmill batch run tickets.csv --schema triage.json -o answers.xlsx
    """
    shape = read_shape(schema) if schema else None
    layout = layout_of(delimiter, encoding, sheet, header)
    columns = columns_of(id, prompt, conversation, template, ignore)
    if preview is not None:
        backlog = check_backlog(file, layout, columns)
        for text in show_preview(backlog, preview, shape):
            console.print(text, soft_wrap=True)
        if said := say_estimate(backlog, bot, tenant, max_tokens, shape):
            console.print(said, soft_wrap=True)
        return
    # First: the results' name comes from the backlog's.
    check_backlog_path(file)
    target = Output(output or default_output(file), overwrite, raw, details, shape)
    check_results_path(target.path)
    check_place(target.path, backlog=file, overwrite=overwrite)
    with open_system(tenant=tenant) as system:
        try:
            status = answer_backlog(
                system, check_backlog(file, layout, columns), target, bot=bot, name=name,
                max_tokens=max_tokens, temperature=temperature,
                again=shlex.join(["turnmill", *sys.argv[1:]]),
            )  # fmt: skip
        except KeyboardInterrupt:
            console.print("Stopped; nothing is lost. Run the same again to submit the other rows.")
            status = INTERRUPTED
    raise typer.Exit(status)


@app.command()
def status(
    batch_id: Annotated[str | None, typer.Argument(help="All batches when left out.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it is done.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON of one batch, for programs.")
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """Show how far a batch is.

    Example: turnmill batch status --watch batch_01a2
    """
    if as_json and (watch or batch_id is None):
        raise InvalidInput(
            "--json shows one batch, once: name it, and leave out --watch. `batch list --json` "
            "shows all."
        )
    with open_system(tenant=tenant) as system:
        if batch_id is None:
            console.print(batch_view.batches_table(*_found(system)))
            return
        batch = find_batch(system.database, system.tenant_id, batch_id)
        if as_json:
            now = progress(system.database, system.tenant_id, batch.batch_id)
            print_json(ShownProgress.at(batch, now))
        elif watch:
            if watch_batch(system, batch, Path("results.jsonl")) is None:
                raise typer.Exit(INTERRUPTED)
        else:
            now = summarize(system.database, system.tenant_id, batch.batch_id)
            console.print(batch_view.describe_progress(now), soft_wrap=True)
            console.print(batch_view.summary(now, None))


@app.command("list")
def show_list(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Batches shown.")] = 100,
    after: Annotated[str | None, typer.Option(help="The next page: the last batch shown.")] = None,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List the batches, the newest first, and how many turns of each have ended.

    Example: turnmill batch list
    """
    start = None if after is None else parse_id(Prefix.BATCH, after)
    with open_system(tenant=tenant) as system:
        found, ended = _found(system, limit + 1, start)
        suffix = system.suffix
    page = BatchPage.of(found, ended, limit)
    if as_json:
        print_json(page)
        return
    console.print(batch_view.batches_table(found[:limit], ended))
    if page.next is not None:
        more = f"More: turnmill batch list --after {page.next}{suffix}"
        console.print(plain(more), soft_wrap=True)


@app.command()
def pause(batch_id: BatchId, tenant: TenantOption = None) -> None:
    """Let no further turn of a batch begin. Turns that run are answered.

    Example: turnmill batch pause batch_01a2
    """
    with _chosen(batch_id, tenant) as (system, batch):
        with _sweeping("Pausing", "is paused", batch, system) as on_row:
            is_new = control.pause(system.database, batch, on_row)
        _say(batch, "is paused" if is_new else "was paused already")
        _say_command("Let it go on", "resume", batch, system)


@app.command()
def resume(batch_id: BatchId, tenant: TenantOption = None) -> None:
    """Let the turns of a paused batch begin again.

    Example: turnmill batch resume batch_01a2
    """
    with _chosen(batch_id, tenant) as (system, batch):
        with _sweeping("Resuming", "goes on", batch, system) as on_row:
            is_new = control.resume(system.database, batch, on_row)
        _say(batch, "goes on" if is_new else "was not paused")


@app.command()
def cancel(
    batch_id: BatchId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Cancel all turns of a batch that have not ended, for good. What was answered stays.

    Example: turnmill batch cancel batch_01a2
    """
    with _chosen(batch_id, tenant) as (system, batch):
        if not yes:
            typer.confirm(f"Cancel what is left of {batch.name} for good?", abort=True)
        with _sweeping("Cancelling", "is cancelled", batch, system) as on_row:
            is_new = control.cancel_batch(system.database, batch, on_row)
        _say(batch, "is cancelled" if is_new else "was cancelled already")


@app.command()
def retry(
    batch_id: BatchId,
    failed: Annotated[bool, typer.Option("--failed", help="All rows that failed.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Answer the failed rows of a batch anew. Exit status 1 if some have to stay as they are.

    A row stays when a later row of its conversation has been answered.

    Example: turnmill batch retry batch_01a2 --failed
    """
    if not failed:
        raise InvalidInput("Say which rows to answer anew: --failed takes all that failed.")
    with _chosen(batch_id, tenant) as (system, batch):
        with bar("Retrying", batch.total) as on_row:
            done = control.retry(system.database, batch, on_row)
        _say(batch, f"answers {done.replayed:,} rows anew")
        if done.refusal is not None:
            why = done.refusal.message
            console.print(
                plain(f"{done.refused:,} rows stay as they are, such as: {why}"), soft_wrap=True
            )
        _say_command("Watch it", "status --watch", batch, system)
    raise typer.Exit(1 if done.refused else 0)


@app.command("results")
def write(
    batch_id: BatchId,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".jsonl, .csv, .tsv, .xlsx or .parquet")
    ],
    file: Annotated[
        Path | None, typer.Option("--file", help="The batch's file, whose columns are kept.")
    ] = None,
    prompt: PromptOption = None,
    template: TemplateOption = None,
    id: IdOption = None,
    conversation: ConversationOption = None,
    ignore: IgnoreOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    sheet: SheetOption = None,
    header: HeaderOption = None,
    schema: SchemaOption = None,
    overwrite: OverwriteOption = False,
    raw: RawOption = False,
    details: DetailsOption = False,
    tenant: TenantOption = None,
) -> None:
    """Write what a batch has so far; with --file, beside the columns of its file.

    Options that say how the file is read are those that it was submitted with.

    Example: turnmill batch results batch_01a2 -o answers.parquet

    Example: turnmill batch results batch_01a2 --file export.csv --prompt Description -o answers.csv
    """
    shape = read_shape(schema) if schema else None
    check_results_path(output)
    check_place(output, backlog=file, overwrite=overwrite)
    columns = columns_of(id, prompt, conversation, template, ignore)
    with open_system(tenant=tenant) as system:
        batch = find_batch(system.database, system.tenant_id, batch_id)
        layout = layout_of(delimiter, encoding, sheet, header)
        backlog = check_backlog(file, layout, columns) if file else None
        rows = results(system.database, system.tenant_id, batch.batch_id)
        count = write_results(
            output,
            rows,
            backlog,
            shape=shape,
            with_details=details,
            is_raw=raw,
            overwrite=overwrite,
        )
    console.print(plain(f"{count:,} rows in {output}"), soft_wrap=True)


@contextmanager
def _chosen(batch_id: str, tenant: str | None) -> Iterator[tuple[System, Batch]]:
    with open_system(tenant=tenant) as system:
        yield system, find_batch(system.database, system.tenant_id, batch_id)


@contextmanager
def _sweeping(
    doing: str, done: str, batch: Batch, system: System
) -> Iterator[Callable[[int], None]]:
    """A bar while a decision reaches the turns. Ctrl-C leaves the other rows to workers."""
    rows: list[int] = []
    try:
        with bar(doing, batch.total) as on_row:

            def note(row: int) -> None:
                rows[:] = [row]
                on_row(row)

            yield note
    except KeyboardInterrupt:
        if not rows:
            raise  # Perhaps before the decision was committed.
        _say(batch, f"{done}: that holds already, and workers do the rows after {rows[0]:,}")
        _say_command("Watch it", "status --watch", batch, system)
        raise typer.Exit(INTERRUPTED) from None


def _say(batch: Batch, what: str) -> None:
    shown = show_id(Prefix.BATCH, batch.batch_id)
    console.print(plain(f"{shown} ({batch.name}) {what}."), soft_wrap=True)


def _say_command(why: str, command: str, batch: Batch, system: System) -> None:
    shown = show_id(Prefix.BATCH, batch.batch_id)
    text = f"{why}: turnmill batch {command} {shown}{system.suffix}"
    console.print(plain(text), soft_wrap=True)


def _found(
    system: System, limit: int = 100, after: UUID | None = None
) -> tuple[list[Batch], dict[UUID, int]]:
    """A page of batches, and how many turns of each have ended."""
    found = list_batches(system.database, system.tenant_id, limit=limit, after=after)
    return found, count_ended(system.database, [batch.batch_id for batch in found])

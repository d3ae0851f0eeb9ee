"""The prompts that a backlog's first rows become, before anything is spent."""

from collections.abc import Iterator
from itertools import islice

from rich.text import Text

from turnmill.producer.batches.backlog import Backlog
from turnmill.producer.batches.estimate import Estimate, estimate
from turnmill.producer.batches.shapes import Shape
from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.views.status_view import span
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.batches import BacklogRow
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.formats.values import shortest_reply


def preview(backlog: Backlog, count: int, shape: Shape | None = None) -> Iterator[Text]:
    """The first rows' messages, whole, as the bot is going to get them; the replies' columns."""
    for number, row in islice(backlog.rows(), count):
        yield Text.assemble((_head(number, row), "bold"))
        for message in row.all_messages:
            yield plain(f"  {message.role}: {_indented(message.text)}")
    if shape is not None:
        yield plain(f"Each reply becomes columns: {shape.describe()}.")
        yield plain(f"  such as {shortest_reply(shape.format)}")
    shown = min(count, backlog.total)
    yield plain(
        f"{shown:,} of {backlog.total:,} rows shown, nothing submitted. Submit all: leave out "
        "--preview."
    )


def say_estimate(
    backlog: Backlog,
    bot: str | None,
    tenant: str | None,
    max_tokens: int | None,
    shape: Shape | None = None,
) -> str | None:
    """What all rows will take; None without a database, which a preview does not need."""
    try:
        with open_system(tenant=tenant) as system:
            found = estimate(
                system.database, system.tenant_id, bot or system.settings.engine.model_name,
                backlog, lease_s=system.settings.worker.lease_s, max_tokens=max_tokens,
                format=shape.format if shape else None,
            )  # fmt: skip
    except DatabaseUnavailable:
        return None
    if found is None:
        return "No estimate yet: this bot's first answers are what it is judged by."
    return describe(found)


def describe(found: Estimate) -> str:
    """One line for people."""
    most = "at most " if found.is_bound else ""
    turns = "turns in other formats" if found.is_bound else "turns"
    time = "and no worker consumes them now"
    if found.duration_s:
        time = f"{most}{span(found.duration_s)} with the workers that consume now"
    return (
        f"All rows: about {found.prompt_tokens:,} prompt and {most}{found.completion_tokens:,} "
        f"reply tokens, {time}, judged by {found.measured:,} of the bot's {turns}."
    )


def _head(number: int, row: BacklogRow) -> str:
    parts = [f"row {number}", f"id {row.id}"]
    if row.conversation:
        parts.append(f"conversation {row.conversation}")
    # Keys are the file's text: they must not steer the terminal either.
    return plain(", ".join(parts)).plain


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")

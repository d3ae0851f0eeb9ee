"""Turns on a terminal: a page of them, or those that were found."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from turnmill.producer.channels.deliveries import DeliveryView
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.status_view import span
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.operations.remedies import tenant_option
from turnmill.producer.operations.turns import ListedTurn, TurnPage
from turnmill.producer.operations.why import Why
from turnmill.schemas.channels.deliveries import DeliveryState


def page(listed: TurnPage, now: datetime) -> RenderableType:
    """The turns, and how to get to the next page."""
    parts: list[RenderableType] = [_table(listed.turns, now) if listed.turns else "No such turns."]
    if listed.looked_back_to:
        back_to = listed.looked_back_to.isoformat(timespec="seconds")
        parts.append(f"Looked at the turns accepted since {back_to}.")
    if listed.next:
        parts.append(f"More: the same with --after {listed.next}")
    return Group(*parts)


def found(
    turns: Sequence[ListedTurn], why: Why | None, deliveries: Sequence[DeliveryView], now: datetime
) -> RenderableType:
    """The turns, what each was found by, of a single open one why it waits, and of replies that
    did not reach their channels why not.
    """
    parts: list[RenderableType] = [_table(turns, now, shows_names=True)]
    if why:
        parts.append(plain(f"It {why.text}."))
        if why.remedy:
            parts.append(Text("→ ", style="bold").append_text(plain(why.remedy)))
    suffix = tenant_option(turns[0].tenant)
    for each in deliveries:
        text, remedy = delivered(each, suffix)
        if remedy or len(turns) == 1:
            whose = "Its reply" if len(turns) == 1 else f"The reply of {each.turn_id}"
            parts.append(plain(f"{whose}: {text}"))
        if remedy:
            parts.append(Text("→ ", style="bold").append_text(plain(remedy)))
    parts.append(plain(f"Its dialogue: turnmill turns show {turns[0].turn_id}{suffix}"))
    return Group(*parts)


def delivered(delivery: DeliveryView, suffix: str) -> tuple[str, str | None]:
    """How far a reply is on its way to its channel, and what helps where it is not there.

    `suffix` is the option of its tenant, for the command.
    """
    said, reason = f"{delivery.state} on channel {delivery.channel}", delivery.error_message
    if delivery.state is DeliveryState.FAILED:
        remedy = f"turnmill deliveries retry {delivery.id}{suffix}; mend the reason first"
        return f"{said}, because: {reason or delivery.error_code}", remedy
    if delivery.failures and delivery.state is DeliveryState.QUEUED:
        said += f" for another attempt, after {delivery.failures} failures, the last one: {reason}"
    return said, None


def _table(turns: Sequence[ListedTurn], now: datetime, *, shows_names: bool = False) -> Table:
    names = ["turn", "age", "state", "lane", "attempts", "error", "bot", "tenant"]
    table = Listing(*names, *(["found by"] if shows_names else []))
    for turn in turns:
        row = [
            turn.turn_id,
            span(max((now - turn.accepted_at).total_seconds(), 0.0)),
            turn.state.value,
            turn.lane.value,
            str(turn.attempts),
            turn.error_code or "",
            plain(turn.bot),
            plain(turn.tenant),
        ]
        table.add_row(*row, *([plain(turn.found_by or "")] if shows_names else []))
    return table

"""`turnmill turns show|cancel`: one turn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.turns import Turn

if TYPE_CHECKING:
    from turnmill.producer.operations.why import Why

TurnId = Annotated[str, typer.Argument(help="turn_… as the API and the logs show it.")]


def show(turn_id: TurnId, tenant: TenantOption = None) -> None:
    """Show a turn: its state, its messages, its reply, and whether that reached its channel.

    Example: turnmill turns show turn_01a20a667dde743da35d0f8a02aa55e1
    """
    from turnmill.producer.channels.deliveries import deliveries_of
    from turnmill.producer.cli.views.turns_view import delivered
    from turnmill.producer.operations.why import Explainer
    from turnmill.producer.turns import read_turn

    with open_system(tenant=tenant) as system:
        turn = read_turn(system.database, system.tenant_id, parse_id(Prefix.TURN, turn_id))
        why = Explainer(system.database, system.settings).explain(turn.turn_id)
        deliveries = deliveries_of(system.database, [turn.turn_id])
        ways = [delivered(each, system.suffix) for each in deliveries]
    make_console().print(_table(turn, why, ways))


def cancel(turn_id: TurnId, tenant: TenantOption = None) -> None:
    """Cancel a turn that is not answered yet; its conversation goes on.

    Example: turnmill turns cancel turn_01a20a667dde743da35d0f8a02aa55e1
    """
    from turnmill.producer.cancel import cancel as cancel_turn

    with open_system(tenant=tenant) as system:
        was_open = cancel_turn(system.database, system.tenant_id, parse_id(Prefix.TURN, turn_id))
    make_console().print("Cancelled." if was_open else "It had already ended; nothing changed.")


def _table(turn: Turn, why: "Why | None", ways: Sequence[tuple[str, str | None]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "turn": show_id(Prefix.TURN, turn.turn_id),
        "conversation": f"{show_id(Prefix.CONVERSATION, turn.conversation_id)}, turn {turn.seq}",
        "bot": f"{turn.bot} (model {turn.model})",
        "state": f"{turn.state} in lane {turn.lane}, attempt {turn.attempt}",
        "accepted": turn.accepted_at.isoformat(timespec="milliseconds"),
        "settled": turn.settled_at.isoformat(timespec="milliseconds") if turn.settled_at else "-",
    }
    if why:
        rows["now"] = why.text
    if why and why.remedy:
        rows["remedy"] = why.remedy
    if turn.error_code:
        rows["error"] = f"{turn.error_code}: {turn.error_message}"
    for text, remedy in ways:
        rows["delivery"] = text
        if remedy:
            rows["remedy"] = remedy
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", plain(value))
    for message in turn.messages:
        table.add_row(f"[dim]{message.role}[/]", plain(message.text))
    if turn.reply:
        usage = turn.reply.usage
        table.add_row("[dim]reply[/]", plain(turn.reply.content))
        table.add_row(
            "[dim]usage[/]",
            f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {turn.reply.finish_reason}",
        )
        if turn.reply.verdict:
            table.add_row("[dim]knowledge[/]", turn.reply.verdict)
        for source in turn.reply.sources:
            name = "cited" if source.cited else "shown"
            version = f", version {source.version}" if source.version else ""
            table.add_row(f"[dim]{name}[/]", plain(source.line + version))
    return table

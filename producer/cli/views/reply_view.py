"""A reply on a terminal, as it is written."""

from uuid import UUID

from rich.console import Console

from turnmill.producer.cli.context import System
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.follow import Follower, Restart
from turnmill.schemas.turns import Turn, TurnState


async def print_reply(system: System, turn_id: UUID, console: Console) -> Turn:
    """Print the reply of a turn until it is settled, or say why there is none."""
    async with Follower(system.database) as follower:
        with console.status("waiting for a worker…") as status:
            async for piece in follower.follow(system.tenant_id, turn_id):
                if isinstance(piece, Turn):
                    turn = piece
                elif isinstance(piece, Restart):
                    console.print("\n[dim](The reply begins again.)[/]")
                elif piece:
                    status.stop()
                    console.print(plain(piece), end="", soft_wrap=True)
    console.print()
    print_sources(turn, console)
    if turn.state is TurnState.HANDED_OFF:
        console.print("[dim]A person answers this conversation; what you wrote is kept.[/]")
    elif turn.state is not TurnState.COMPLETED:
        reason = plain(f"({turn.error_code}): {turn.error_message}")
        console.print(f"[red]{turn.state}[/]", reason)
    return turn


def print_sources(turn: Turn, console: Console) -> None:
    """Print what the turn's reply cites, a line each."""
    for source in turn.reply.sources if turn.reply else ():
        if source.cited:
            console.print("[dim]  ⤷[/]", plain(source.line), soft_wrap=True)

"""A reply on a terminal, as it is written."""

import asyncio
import time
from uuid import UUID

from rich.console import Console

from turnmill.producer.cli.context import System
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.follow import Follower, Restart
from turnmill.producer.operations.why import Explainer, Reason, Why
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.turns import Turn, TurnState

#: Silence after which a person wonders what is the matter.
QUIET_S = 5.0


async def print_reply(system: System, turn_id: UUID, console: Console) -> Turn:
    """Print the reply of a turn until it is settled, or say why there is none.

    What keeps a turn waiting is said on standard error: the output is the reply.
    """
    silence = _Silence(system, turn_id)
    async with Follower(system.database) as follower:
        with console.status("waiting for a worker…") as status:
            async for piece in follower.follow(system.tenant_id, turn_id):
                if isinstance(piece, Turn):
                    turn = piece
                elif isinstance(piece, Restart):
                    console.print("\n[dim](The reply begins again.)[/]")
                elif not piece:
                    await silence.lasts()
                else:
                    silence.ends()
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


class _Silence:
    """A turn of which nothing new is seen; each reason for it is said once."""

    def __init__(self, system: System, turn_id: UUID) -> None:
        self._system = system
        self._turn_id = turn_id
        self._said: Reason | None = None
        self.ends()

    def ends(self) -> None:
        """Text has come."""
        self._next_at = time.monotonic() + QUIET_S

    async def lasts(self) -> None:
        """Say why, once it has lasted long enough."""
        if time.monotonic() < self._next_at:
            return
        self.ends()
        try:
            why = await asyncio.to_thread(self._explain)
        except DatabaseUnavailable as error:
            # It is tried again; so is the reading of the reply.
            Console(stderr=True).print(plain(error.message), style="dim", soft_wrap=True)
            return
        if why is not None and why.reason is not self._said:
            self._said = why.reason
            Console(stderr=True).print(plain(why.describe("The turn")), style="dim", soft_wrap=True)

    def _explain(self) -> Why | None:
        return Explainer(self._system.database, self._system.settings).explain(self._turn_id)


def print_sources(turn: Turn, console: Console) -> None:
    """Print what the turn's reply cites, a line each."""
    for source in turn.reply.sources if turn.reply else ():
        if source.cited:
            console.print("[dim]  ⤷[/]", plain(source.line), soft_wrap=True)

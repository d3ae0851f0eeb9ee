"""`turnmill channels simulate`: an event as the platform would send it, and what becomes of it."""

import asyncio
import time
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from turnmill.producer.cli.context import System
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.reply_view import print_reply
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.channels.deliveries import OPEN_DELIVERIES, DeliveryState
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import TransientError
from turnmill.schemas.turns import TurnState


class _Found(NamedTuple):
    turn_id: UUID | None
    conversation_id: UUID | None


_FOUND = "SELECT turn_id, conversation_id FROM channel_events WHERE channel = %s AND event_id = %s"


class _Notice(NamedTuple):
    content: str


#: What the bot itself said in the conversation, newest first.
_NOTICE = """
SELECT content FROM deliveries WHERE conversation_id = %s AND kind = 'notice'
ORDER BY ordinal DESC LIMIT 1
"""

#: The place is made up: the platform would refuse what is sent there.
_DROP = """
WITH dropped AS (
    UPDATE deliveries SET state = 'dropped', settled_at = clock_timestamp()
    WHERE conversation_id = %s AND state IN ('pending', 'queued') RETURNING id
)
DELETE FROM outbox WHERE turn_id IN (SELECT id FROM dropped) RETURNING turn_id
"""


class _Delivery(NamedTuple):
    state: str
    error_message: str | None


_DELIVERY = "SELECT state, error_message FROM deliveries WHERE turn_id = %s"

#: How long a delivery is waited for after its turn has ended, and how often it is looked at.
DELIVERY_S, LOOK_EVERY_S = 15.0, 0.2

#: Hosts of the real platforms.
_PLATFORMS = (
    "chatwoot.com",
    "dingtalk.com",
    "discord.com",
    "facebook.com",
    "feishu.cn",
    "larksuite.com",
    "slack.com",
    "telegram.org",
    "weixin.qq.com",
)

console = make_console()


def simulate_event(
    system: System, url: str, name: str, section: ChannelSection, text: str, thread: str | None
) -> bool:
    """Send the event, print what its user would see, and return whether there was an answer.

    Raises:
        SettingsError: the secret that signs it is missing.
        TransientError: the API does not take it.
    """
    from turnmill.infra.mocks.sending import send
    from turnmill.producer.cli.channels.simulators.registry import simulate

    event = simulate(section, text, thread)
    sent = send(url, event.request)
    if not sent.is_accepted:
        raise TransientError(_refusal(url, sent.status, sent.body))
    console.print(f"[dim]Accepted in {1000 * sent.duration_s:.0f} ms.[/]")
    rows = system.database.fetch(_Found, _FOUND, (name, event.event_id))
    if not rows or rows[0].conversation_id is None:
        console.print("It became nothing that is answered.")
        return False
    return _show(system, section, rows[0].turn_id, rows[0].conversation_id)


def _show(
    system: System, section: ChannelSection, turn_id: UUID | None, conversation_id: UUID
) -> bool:
    if _is_made_up(section):
        system.database.run(_DROP, (conversation_id,))
    if turn_id is None:
        for row in system.database.fetch(_Notice, _NOTICE, (conversation_id,)):
            console.print(plain(row.content))
        return True
    is_answered = asyncio.run(print_reply(system, turn_id, console)).state is TurnState.COMPLETED
    if not _is_made_up(section):
        _show_delivery(system, turn_id)
    return is_answered


def _show_delivery(system: System, turn_id: UUID) -> None:
    """Wait until the platform, or what stands in for it, has the reply."""
    deadline = time.monotonic() + DELIVERY_S
    rows = system.database.fetch(_Delivery, _DELIVERY, (turn_id,))
    while rows and DeliveryState(rows[0].state) in OPEN_DELIVERIES:
        if time.monotonic() > deadline:
            missing = "Does a delivery worker run? turnmill deliver"
            console.print("[yellow]Not delivered yet.[/]", plain(rows[0].error_message or missing))
            return
        time.sleep(LOOK_EVERY_S)
        rows = system.database.fetch(_Delivery, _DELIVERY, (turn_id,))
    for row in rows:
        console.print(f"[dim]Delivery: {row.state}.[/]", plain(row.error_message or ""))


def _is_made_up(section: ChannelSection) -> bool:
    """Whether the real platform, which knows nothing of the place, would get the reply."""
    api_url = getattr(section, "api_url", None) or ""
    return (urlsplit(api_url).hostname or "").endswith(_PLATFORMS)


def _refusal(url: str, status: int, body: bytes) -> str:
    if not status:
        return f"Nobody answers at {url} within 3 s. Start the API, or name it with --url."
    shown = body.decode(errors="replace")[:500]
    return f"{url} answered {status}: {shown}"

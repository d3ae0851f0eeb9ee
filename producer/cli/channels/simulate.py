"""`turnmill channels simulate`: an event as the platform would send it, and what becomes of it."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

from turnmill.producer.cli.context import System
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.reply_view import print_reply
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.channels.deliveries import OPEN_DELIVERIES, DeliveryState
from turnmill.schemas.channels.sections import ChannelSection
from turnmill.schemas.channels.signatures import webhook_key
from turnmill.schemas.errors import SettingsError, TransientError
from turnmill.schemas.turns import TurnState

if TYPE_CHECKING:
    from turnmill.infra.mocks.sending import Signed


_FOUND = "SELECT turn_id, conversation_id FROM channel_events WHERE channel = %s AND event_id = %s"

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

_DELIVERY = "SELECT state, error_message FROM deliveries WHERE turn_id = %s"

#: How long a delivery is waited for after its turn has ended, and how often it is looked at.
DELIVERY_S, LOOK_EVERY_S = 15.0, 0.2

#: Hosts of the real platforms.
_PLATFORMS = ("facebook.com", "feishu.cn", "larksuite.com", "slack.com", "telegram.org")

console = make_console()


@dataclass(frozen=True, slots=True)
class Simulated:
    request: "Signed"
    event_id: str


def simulate_event(
    system: System, url: str, name: str, section: ChannelSection, text: str, thread: str | None
) -> bool:
    """Send the event, print what its user would see, and return whether there was an answer.

    Raises:
        SettingsError: the secret that signs it is missing.
        TransientError: the API does not take it.
    """
    from turnmill.infra.mocks.sending import send

    event = SIMULATORS[section.kind](section, text, thread)
    sent = send(url, event.request)
    if not sent.is_accepted:
        raise TransientError(_refusal(url, sent.status, sent.body))
    console.print(f"[dim]Accepted in {1000 * sent.duration_s:.0f} ms.[/]")
    rows = system.database.run(_FOUND, (name, event.event_id))
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
        for row in system.database.run(_NOTICE, (conversation_id,)):
            console.print(plain(row.content))
        return True
    is_answered = asyncio.run(print_reply(system, turn_id, console)).state is TurnState.COMPLETED
    if not _is_made_up(section):
        _show_delivery(system, turn_id)
    return is_answered


def _show_delivery(system: System, turn_id: UUID) -> None:
    """Wait until the platform, or what stands in for it, has the reply."""
    deadline = time.monotonic() + DELIVERY_S
    rows = system.database.run(_DELIVERY, (turn_id,))
    while rows and DeliveryState(rows[0].state) in OPEN_DELIVERIES:
        if time.monotonic() > deadline:
            console.print(
                "[yellow]Not delivered yet.[/] Does a delivery worker run? turnmill deliver"
            )
            return
        time.sleep(LOOK_EVERY_S)
        rows = system.database.run(_DELIVERY, (turn_id,))
    for row in rows:
        console.print(f"[dim]Delivery: {row.state}.[/]", plain(row.error_message or ""))


def _is_made_up(section: ChannelSection) -> bool:
    """Whether the real platform, which knows nothing of the place, would get the reply."""
    api_url = getattr(section, "api_url", "")
    return (urlsplit(api_url).hostname or "").endswith(_PLATFORMS)


def _refusal(url: str, status: int, body: bytes) -> str:
    if not status:
        return f"Nobody answers at {url} within 3 s. Start the API, or name it with --url."
    shown = body.decode(errors="replace")[:500]
    return f"{url} answered {status}: {shown}"


def _slack(section: Any, text: str, thread: str | None) -> Simulated:
    from turnmill.infra.mocks.slack.events import sign_callback
    from turnmill.infra.mocks.slack.payloads import Workspace

    if section.signing_secret is None:
        raise SettingsError("The channel has no signing_secret, so it takes no requests.")
    workspace = Workspace()
    fields = {} if thread is None else {"thread_ts": thread}
    callback = workspace.callback(workspace.mention(text, **fields))
    secret = section.signing_secret.read().get_secret_value()
    if thread is None:
        again = f"--thread {callback['event']['ts']}"
        console.print(f"[dim]A new thread; continue it with {again}[/]")
    return Simulated(sign_callback(secret, callback), callback["event_id"])


def _feishu(section: Any, text: str, thread: str | None) -> Simulated:
    from turnmill.infra.mocks.feishu.events import sign
    from turnmill.infra.mocks.feishu.payloads import Tenant

    if thread is None:
        thread = f"oc_simulated-{secrets.token_hex(4)}"
        console.print(f"[dim]A new chat; continue it with --thread {thread}[/]")
    token = section.verification_token
    tenant = Tenant(direct=thread, token="" if token is None else token.read().get_secret_value())
    event = tenant.text(text)
    key = section.encrypt_key.read().get_secret_value()
    return Simulated(sign(key, json.dumps(event).encode()), event["event"]["message"]["message_id"])


def _telegram(section: Any, text: str, thread: str | None) -> Simulated:
    from turnmill.infra.mocks.telegram.updates import Messenger, encode, sign

    chat = int(thread or secrets.randbelow(10**9) + 10**9)
    if thread is None:
        console.print(f"[dim]A new chat; continue it with --thread {chat}[/]")
    messenger = Messenger(user=chat)
    update = messenger.update(secrets.randbelow(10**9), message=messenger.message(text))
    secret = section.secret_token.read().get_secret_value()
    return Simulated(sign(secret, encode(update)), str(update["update_id"]))


def _webhook(section: Any, text: str, thread: str | None) -> Simulated:
    from turnmill.infra.mocks.webhook import message, sign

    if thread is None:
        thread = f"simulated-{secrets.token_hex(4)}"
        console.print(f"[dim]A new thread; continue it with --thread {thread}[/]")
    request = sign(webhook_key(section.secret.read()), message(text, thread=thread))
    return Simulated(request, request.headers["webhook-id"])


def _whatsapp(section: Any, text: str, thread: str | None) -> Simulated:
    from turnmill.infra.mocks.whatsapp import batch, change, encode, message, sign

    user = thread or f"1{secrets.randbelow(10**10):010}"
    if thread is None:
        console.print(f"[dim]A new user; continue with --thread {user}[/]")
    written = message(text, f"wamid.{secrets.token_hex(12)}") | {"from": user}
    found = change(messages=[written])
    found["value"]["metadata"]["phone_number_id"] = section.phone_number_id
    secret = section.app_secret.read().get_secret_value()
    return Simulated(sign(secret, encode(batch(found))), written["id"])


SIMULATORS: dict[str, Callable[[Any, str, str | None], Simulated]] = {
    "feishu": _feishu,
    "slack": _slack,
    "telegram": _telegram,
    "webhook": _webhook,
    "whatsapp": _whatsapp,
}

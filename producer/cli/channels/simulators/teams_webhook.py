"""A message as Teams would send it to an outgoing webhook."""

import json
import secrets

from turnmill.infra.mocks.teams import webhooks
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.teams_webhook import TeamsWebhookSection
from turnmill.schemas.channels.teams import message_key


def simulate_webhook(section: TeamsWebhookSection, text: str, thread: str | None) -> Simulated:
    """Make a message in a channel; the thread is the number of its first message."""
    if thread is None:
        thread = str(secrets.randbelow(10**12) + 10**12)
        console.print(f"[dim]A new thread; continue it with --thread {thread}[/]")
    conversation = f"{webhooks.CHANNEL};messageid={thread}"
    written = webhooks.message(text, conversation={"id": conversation, "isGroup": True})
    signed = webhooks.sign(section.token.read().get_secret_value(), json.dumps(written).encode())
    return Simulated(signed, message_key(conversation, written["id"]))

"""A message as a system that speaks signed webhooks would send it."""

import secrets

from turnmill.infra.mocks.webhook import message, sign
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.webhook import WebhookSection
from turnmill.schemas.channels.signatures import webhook_key


def simulate_webhook(section: WebhookSection, text: str, thread: str | None) -> Simulated:
    if thread is None:
        thread = f"simulated-{secrets.token_hex(4)}"
        console.print(f"[dim]A new thread; continue it with --thread {thread}[/]")
    request = sign(webhook_key(section.secret.read()), message(text, thread=thread))
    return Simulated(request, request.headers["webhook-id"])

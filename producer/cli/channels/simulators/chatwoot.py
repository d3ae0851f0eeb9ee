"""A customer's message as Chatwoot would send it."""

import secrets

from turnmill.infra.mocks.chatwoot import encode, message, sign
from turnmill.infra.mocks.sending import JSON, Signed
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection


def simulate_chatwoot(section: ChatwootSection, text: str, thread: str | None) -> Simulated:
    """Make a message in a pending conversation; the thread is its number."""
    number = int(thread or secrets.randbelow(10**9) + 10**6)
    if thread is None:
        console.print(f"[dim]A new conversation; continue it with --thread {number}[/]")
    written = message(text, number=number, account={"id": section.account_id})
    return Simulated(_sign(section, encode(written)), f"message:{written['id']}")


def _sign(section: ChatwootSection, body: bytes) -> Signed:
    headers, query = {"Content-Type": JSON}, {}
    if section.webhook_secret is not None:
        headers = sign(section.webhook_secret.read().get_secret_value(), body).headers
    if section.url_token is not None:
        query = {"token": section.url_token.read().get_secret_value()}
    return Signed(headers, body, query)

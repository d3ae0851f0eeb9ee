"""A message as WhatsApp would send it."""

import secrets

from turnmill.infra.mocks.whatsapp import batch, change, encode, message, sign
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection


def simulate_whatsapp(section: WhatsAppSection, text: str, thread: str | None) -> Simulated:
    user = thread or f"1{secrets.randbelow(10**10):010}"
    if thread is None:
        console.print(f"[dim]A new user; continue with --thread {user}[/]")
    written = message(text, f"wamid.{secrets.token_hex(12)}") | {"from": user}
    found = change(messages=[written])
    found["value"]["metadata"]["phone_number_id"] = section.phone_number_id
    secret = section.app_secret.read().get_secret_value()
    return Simulated(sign(secret, encode(batch(found))), written["id"])

"""A message as Telegram would send it."""

import secrets

from turnmill.infra.mocks.telegram.updates import Messenger, encode, sign
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.telegram import TelegramSection


def simulate_telegram(section: TelegramSection, text: str, thread: str | None) -> Simulated:
    chat = int(thread or secrets.randbelow(10**9) + 10**9)
    if thread is None:
        console.print(f"[dim]A new chat; continue it with --thread {chat}[/]")
    messenger = Messenger(user=chat)
    update = messenger.update(secrets.randbelow(10**9), message=messenger.message(text))
    secret = section.secret_token.read().get_secret_value()
    return Simulated(sign(secret, encode(update)), str(update["update_id"]))

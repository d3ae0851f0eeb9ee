"""A command as Discord would send it."""

import secrets

from turnmill.infra.mocks.discord import command, encode, in_direct_chat, public_key, sign
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.discord import DiscordSection
from turnmill.schemas.errors import SettingsError


def simulate_discord(section: DiscordSection, text: str, thread: str | None) -> Simulated:
    """Make a command in a direct chat; the thread is the chat's id.

    Raises:
        SettingsError: only Discord can sign for the public key.
    """
    secret = section.bot_token.read().get_secret_value()
    if section.public_key.lower() != public_key(secret):
        raise SettingsError(
            "Only Discord can sign for the public key of a real application. To simulate, set "
            f'public_key = "{public_key(secret)}", which belongs to a key made of the bot token.'
        )
    chat = thread or str(secrets.randbelow(10**18) + 10**18)
    if thread is None:
        console.print(f"[dim]A new chat; continue it with --thread {chat}[/]")
    written = in_direct_chat(command("ask", text), chat)
    return Simulated(sign(secret, encode(written)), written["id"])

"""A message as DingTalk would send it."""

import secrets

from turnmill.infra.mocks.dingtalk import encode, message, sign
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection


def simulate_dingtalk(section: DingTalkSection, text: str, thread: str | None) -> Simulated:
    """Make a message in a direct chat; the thread is the chat's id."""
    if thread is None:
        thread = f"cid-simulated-{secrets.token_hex(4)}"
        console.print(f"[dim]A new chat; continue it with --thread {thread}[/]")
    written = message(text, conversationId=thread)
    secret = section.client_secret.read().get_secret_value()
    return Simulated(sign(secret, encode(written)), written["msgId"])

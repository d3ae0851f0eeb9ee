"""A message as WeChat would send it."""

import secrets

from turnmill.infra.mocks.wechat import message, sign
from turnmill.infra.mocks.wecom.messages import encode
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.channels.wechat import Sealer


def simulate_wechat(section: WeChatSection, text: str, thread: str | None) -> Simulated:
    """Make a message to the account; the thread is the person's OpenID."""
    user = thread or f"simulated-{secrets.token_hex(4)}"
    if thread is None:
        console.print(f"[dim]A new person; continue with --thread {user}[/]")
    sealer = Sealer(section.token.read(), section.encoding_aes_key.read(), section.app_id)
    written = message(text, user=user)
    return Simulated(sign(sealer, encode(written)), written["MsgId"])

"""A message as WeCom would send it."""

import secrets

from turnmill.infra.mocks.wecom.messages import encode, message, sign
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.channels.wechat import Sealer


def simulate_wecom(section: WeComSection, text: str, thread: str | None) -> Simulated:
    """Make a message to the application; the thread is the person's id."""
    user = thread or f"simulated-{secrets.token_hex(4)}"
    if thread is None:
        console.print(f"[dim]A new person; continue with --thread {user}[/]")
    sealer = Sealer(section.token.read(), section.encoding_aes_key.read(), section.corp_id)
    written = message(text, user=user, corp_id=section.corp_id)
    return Simulated(sign(sealer, encode(written)), written["MsgId"])

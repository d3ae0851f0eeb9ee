"""A message as Feishu would send it."""

import json
import secrets

from turnmill.infra.mocks.feishu.events import sign
from turnmill.infra.mocks.feishu.payloads import Tenant
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.feishu import FeishuSection


def simulate_feishu(section: FeishuSection, text: str, thread: str | None) -> Simulated:
    if thread is None:
        thread = f"oc_simulated-{secrets.token_hex(4)}"
        console.print(f"[dim]A new chat; continue it with --thread {thread}[/]")
    token = section.verification_token
    tenant = Tenant(direct=thread, token="" if token is None else token.read().get_secret_value())
    event = tenant.text(text)
    key = section.encrypt_key.read().get_secret_value()
    return Simulated(sign(key, json.dumps(event).encode()), event["event"]["message"]["message_id"])

"""Events in Feishu's form: https://open.feishu.cn/document/uAjLw4CM/ukTMukTMukTM/reference/im-v1"""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any

from turnmill.infra.mocks.sending import Payload


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A company with an app in it, a person, a direct chat and a group."""

    app: str = "cli_turnmill"
    token: str = "made-up-verification-token"  # noqa: S105
    bot: str = "ou_bot"
    user: str = "ou_alice"
    direct: str = "oc_alice"
    group: str = "oc_general"

    def event(self, event_type: str, event: Payload, event_id: str | None = None) -> Payload:
        """Wrap an event as schema 2.0 does."""
        return {
            "schema": "2.0",
            "header": {
                "event_id": event_id or secrets.token_hex(16),
                "token": self.token,
                "create_time": str(time.time_ns() // 1_000_000),
                "event_type": event_type,
                "tenant_key": "turnmill",
                "app_id": self.app,
            },
            "event": event,
        }

    def message(
        self,
        said: Payload,
        kind: str = "text",
        *,
        event_id: str | None = None,
        sender_type: str = "user",
        **fields: object,
    ) -> Payload:
        """Somebody wrote to the bot in the direct chat, or elsewhere (`chat_id`, `chat_type`)."""
        sender = self.user if sender_type == "user" else self.bot
        message = {
            "message_id": new_id("om"),
            "create_time": str(time.time_ns() // 1_000_000),
            "chat_id": self.direct,
            "chat_type": "p2p",
            "message_type": kind,
            "content": json.dumps(said, ensure_ascii=False),
        }
        ids = {"open_id": sender, "union_id": f"on_{sender}", "user_id": None}
        event = {
            "sender": {"sender_id": ids, "sender_type": sender_type, "tenant_key": "turnmill"},
            "message": message | fields,
        }
        return self.event("im.message.receive_v1", event, event_id)

    def text(self, text: str, **fields: Any) -> Payload:
        return self.message({"text": text}, **fields)

    def mention(self, text: str, **fields: object) -> Payload:
        """Somebody mentioned the bot in the group."""
        mention = self.mentioned(self.bot, "Turnmill", mentioned_type="bot")
        place = {"chat_id": self.group, "chat_type": "group", "mentions": [mention]}
        return self.text(f"@_user_1 {text}", **(place | fields))

    def mentioned(self, open_id: str, name: str, number: int = 1, **fields: object) -> Payload:
        ids = {"open_id": open_id, "union_id": f"on_{open_id}", "user_id": ""}
        return {"key": f"@_user_{number}", "id": ids, "name": name, **fields}

    def pressed(self, value: Payload, message: str, chat: str | None = None) -> Payload:
        """Somebody pressed a button of a card."""
        event = {
            "operator": {"tenant_key": "turnmill", "open_id": self.user},
            "token": f"c-{secrets.token_hex(16)}",
            "action": {"value": value, "tag": "button"},
            "host": "im_message",
            "context": {"open_message_id": message, "open_chat_id": chat or self.direct},
        }
        return self.event("card.action.trigger", event)

    def challenge(self, challenge: str) -> Payload:
        """The check of the request URL."""
        return {"challenge": challenge, "token": self.token, "type": "url_verification"}

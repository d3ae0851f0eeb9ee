"""What Telegram sends, in its own shapes. https://core.telegram.org/bots/api#update"""

import json
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

from turnmill.infra.mocks.sending import JSON, Payload, Signed

_numbers = count(int(time.time()))


def sign(secret: str, body: bytes) -> Signed:
    """Telegram signs nothing: each request carries the secret."""
    return Signed({"Content-Type": JSON, "X-Telegram-Bot-Api-Secret-Token": secret}, body)


def encode(update: Payload) -> bytes:
    return json.dumps(update, ensure_ascii=False).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Messenger:
    """A bot, a person who writes to it, and a group in which both are."""

    bot: int = 123456789
    username: str = "acme_bot"
    user: int = 4711
    group: int = -1001234

    def update(self, update_id: int | None = None, **content: object) -> Payload:
        return {"update_id": next(_numbers) if update_id is None else update_id, **content}

    def message(self, text: str, chat: int | None = None, **fields: object) -> Payload:
        """A private message, or one of the group, with the entities that Telegram finds in it."""
        is_private = chat is None
        place = {"id": self.user, "type": "private", "first_name": "Alice"}
        if not is_private:
            place = {"id": chat, "type": "supergroup", "title": "ACME"}
        sender = {"id": self.user, "is_bot": False, "first_name": "Alice", "language_code": "en"}
        return {
            "message_id": next(_numbers),
            "from": sender,
            "chat": place,
            "date": int(time.time()),
            "text": text,
            **({"entities": found} if (found := self._mentions(text)) else {}),
            **fields,
        }

    def photo(self, **fields: Any) -> Payload:
        sizes = [{"file_id": "A", "file_unique_id": "a", "width": 9, "height": 9}]
        message = self.message("", photo=sizes, **fields)
        return {name: value for name, value in message.items() if name != "text"}

    def by_the_bot(self) -> Payload:
        return self.message("I answered.") | {"from": self.myself}

    @property
    def myself(self) -> Payload:
        return {"id": self.bot, "is_bot": True, "first_name": "ACME", "username": self.username}

    def pressed(self, data: str, message: Payload) -> Payload:
        """A pressed button under a message of the bot."""
        return {
            "id": str(next(_numbers)),
            "from": {"id": self.user, "is_bot": False, "first_name": "Alice"},
            "message": message,
            "chat_instance": "1",
            "data": data,
        }

    def _mentions(self, text: str) -> list[Payload]:
        """Mentions outside of code, by UTF-16 code units."""
        name, found = f"@{self.username}", []
        at = text.find(name)
        if at >= 0 and "`" not in text[:at]:
            offset = len(text[:at].encode("utf-16-le", "surrogatepass")) // 2
            found.append({"type": "mention", "offset": offset, "length": len(name)})
        return found

"""Telegram's Bot API on this machine. https://core.telegram.org/bots/api"""

import time
from collections import deque
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import count

from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.serving import Call, MockAPI, Reply

TOKEN = "123456789:AAmock"  # noqa: S105 - of this mock only
MAX_TEXT, MAX_DATA = 4096, 64
#: A preview vanishes after so long.
PREVIEW_S = 30.0
#: Messages a minute in one group.
GROUP_PER_MINUTE = 20

_TAGS = {"b", "i", "u", "s", "code", "pre", "a", "blockquote"}


@dataclass
class Posted:
    message_id: int
    chat: int
    topic: int | None
    #: Without its markup.
    text: str
    html: str
    keyboard: list[list[dict[str, str]]] = field(default_factory=list)
    answers: int | None = None
    history: list[str] = field(default_factory=list)


class TelegramAPI(MockAPI):
    def __init__(self, *, is_limited: bool = True) -> None:
        super().__init__()
        self.messages: list[Posted] = []
        #: By chat: the text and when it was set.
        self.previews: dict[int, tuple[str, float]] = {}
        self.typing: list[int] = []
        self.webhook: dict[str, object] = {}
        #: Why a chat takes nothing: `Forbidden: bot was blocked by the user`.
        self.chat_error: str | None = None
        #: What users sent, by `file_id`.
        self.files: dict[str, bytes] = {}
        #: Voice messages of the bot: the chat and the sound.
        self.voices: list[tuple[int, bytes]] = []
        self.has_previews = True
        self._is_limited = is_limited
        self._sent: dict[int, deque[float]] = {}
        self._ids = count(1)

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    def preview(self, chat: int) -> str | None:
        text, at = self.previews.get(chat, ("", 0.0))
        return text if time.monotonic() - at < PREVIEW_S else None

    def name(self, call: Call) -> str:
        return call.path.rpartition("/")[2]

    def limited(self, retry_after_s: float) -> Reply:
        after_s = int(retry_after_s)
        text = f"Too Many Requests: retry after {after_s}"
        data = {"ok": False, "error_code": 429, "description": text}
        return Reply(429, data | {"parameters": {"retry_after": after_s}})

    def answer(self, call: Call) -> Reply:
        if call.path.startswith(f"/file/bot{TOKEN}/files/"):
            data = self.files.get(self.name(call))
            return Reply(404) if data is None else Reply(200, data)
        if call.path.split("/")[1] != f"bot{TOKEN}":
            return _refuse(401, "Unauthorized")
        method = getattr(self, f"_{self.name(call)}", None)
        if method is None:
            return _refuse(404, "Not Found")
        try:
            result = method(**call.given)
        except _Refusal as error:
            return _refuse(403 if "Forbidden" in str(error) else 400, str(error))
        return result if isinstance(result, Reply) else Reply(200, {"ok": True, "result": result})

    # Methods by their own names, with the fields that we may send.

    def _getMe(self) -> dict[str, object]:
        return {"id": 123456789, "is_bot": True, "first_name": "ACME", "username": "acme_bot"}

    def _getFile(self, file_id: str) -> dict[str, object]:
        if file_id not in self.files:
            raise _Refusal("Bad Request: invalid file_id")
        return {"file_id": file_id, "file_path": f"files/{file_id}"}

    def _getWebhookInfo(self) -> dict[str, object]:
        return {"url": "", "pending_update_count": 0, **self.webhook}

    def _setWebhook(self, url: str, secret_token: str, allowed_updates: list[str]) -> bool:
        if not url.startswith("https://"):
            raise _Refusal("Bad Request: bad webhook: An HTTPS URL must be provided for webhook")
        self.webhook = {"url": url, "allowed_updates": allowed_updates}
        return True

    def _setMyCommands(self, commands: list[dict[str, str]]) -> bool:
        return bool(commands)

    def _sendChatAction(self, chat_id: int, action: str, message_thread_id: int = 0) -> bool:
        self._check(chat_id)
        self.typing.append(chat_id)
        return True

    def _sendMessageDraft(
        self,
        chat_id: int,
        draft_id: int,
        text: str,
        parse_mode: str | None = None,
        message_thread_id: int | None = None,
    ) -> object:
        self._check(chat_id)
        if not self.has_previews or chat_id < 0 or draft_id == 0:
            raise _Refusal("Bad Request: TEXTDRAFT_PEER_INVALID")
        self.previews[chat_id] = (_plain(text, parse_mode), time.monotonic())
        return True

    def _sendMessage(
        self,
        chat_id: int,
        text: str,
        parse_mode: str | None = None,
        message_thread_id: int | None = None,
        link_preview_options: Payload | None = None,
        reply_parameters: Payload | None = None,
        reply_markup: Payload | None = None,
    ) -> object:
        self._check(chat_id)
        if (wait_s := self._wait(chat_id)) > 0:
            return self.limited(wait_s + 1)
        answers = (reply_parameters or {}).get("message_id")
        message = Posted(
            next(self._ids), chat_id, message_thread_id, _plain(text, parse_mode), text,
            _keyboard(reply_markup), answers,
        )  # fmt: skip
        message.history.append(message.text)
        self.messages.append(message)
        self.previews.pop(chat_id, None)
        return {"message_id": message.message_id}

    def _sendVoice(
        self, chat_id: str, voice: bytes, message_thread_id: str | None = None
    ) -> dict[str, object]:
        self._check(int(chat_id))
        if not voice.startswith(b"OggS") or b"OpusHead" not in voice[:100]:
            # Telegram takes it, and shows it as a file.
            raise _Refusal("Bad Request: no voice message")
        self.voices.append((int(chat_id), voice))
        return {"message_id": next(self._ids)}

    def _editMessageText(
        self,
        chat_id: int,
        message_id: int,
        text: str,
        parse_mode: str | None = None,
        reply_markup: Payload | None = None,
    ) -> object:
        self._check(chat_id)
        found = [each for each in self.messages if each.message_id == message_id]
        if not found:
            raise _Refusal("Bad Request: message to edit not found")
        (message,) = found
        plain, keyboard = _plain(text, parse_mode), _keyboard(reply_markup)
        if (message.html, message.keyboard) == (text, keyboard):
            raise _Refusal("Bad Request: message is not modified: specified new message content")
        message.text, message.html, message.keyboard = plain, text, keyboard
        message.history.append(plain)
        return {"message_id": message_id}

    def _check(self, chat_id: int) -> None:
        if self.chat_error is not None:
            raise _Refusal(self.chat_error)
        if not isinstance(chat_id, int):
            raise _Refusal("Bad Request: chat not found")

    def _wait(self, chat_id: int) -> float:
        """Seconds until a group takes another message."""
        if not self._is_limited or chat_id > 0:
            return 0.0
        sent, now = self._sent.setdefault(chat_id, deque()), time.monotonic()
        while sent and now - sent[0] > 60:
            sent.popleft()
        if len(sent) >= GROUP_PER_MINUTE:
            return 60 - (now - sent[0])
        sent.append(now)
        return 0.0


class _Refusal(Exception):
    """The description of a refusal."""


def _refuse(status: int, description: str) -> Reply:
    return Reply(status, {"ok": False, "error_code": status, "description": description})


def _keyboard(markup: Payload | None) -> list[list[dict[str, str]]]:
    rows: list[list[dict[str, str]]] = (markup or {}).get("inline_keyboard", [])
    if any(len(button["callback_data"].encode()) > MAX_DATA for row in rows for button in row):
        raise _Refusal("Bad Request: BUTTON_DATA_INVALID")
    return rows


def _plain(text: str, parse_mode: str | None) -> str:
    """Read the markup as Telegram does, which wants every tag known and closed in order."""
    if parse_mode == "HTML":
        reader = _Reader()
        reader.feed(text)
        reader.close()
        if reader.opened:
            raise _Refusal("Bad Request: can't parse entities: can't find end tag")
        text = "".join(reader.found)
    if not text.strip():
        raise _Refusal("Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > MAX_TEXT:
        raise _Refusal("Bad Request: message is too long")
    return text.strip()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.opened: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in _TAGS:
            raise _Refusal(f'Bad Request: can\'t parse entities: Unsupported start tag "{tag}"')
        self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.opened or self.opened.pop() != tag:
            raise _Refusal("Bad Request: can't parse entities: Unexpected end tag")

    def handle_data(self, data: str) -> None:
        self.found.append(data)

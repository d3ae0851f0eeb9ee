"""What people write to an application of WeCom or an account of WeChat, in our words.

https://developer.work.weixin.qq.com/document/path/90239
https://developers.weixin.qq.com/doc/offiaccount/Message_Management/Receiving_standard_messages.html
"""

from collections.abc import Mapping

from turnmill.producer.channels.base import remote_files
from turnmill.schemas.channels.events import Address, Event, UserMessage

#: Kinds of messages that people send; `event` says that somebody followed the account and so on.
_WRITTEN = frozenset({"text", "image", "voice", "video", "shortvideo", "location", "link", "file"})
#: Where a message's text stands; of voices, what the platform heard, where it brings it.
_TEXTS = {"text": "Content", "voice": "Recognition"}
#: What can be read of others, which the delivery process fetches within three days by their id.
_FILES = {"image": "image/", "voice": "audio/"}


def read_message(channel: str, fields: Mapping[str, str]) -> Event | str:
    """Read a message; a word instead says why there is none. Raises pydantic's `ValidationError`.

    A person has one conversation with the application. Of other messages than texts, voices and
    images nothing is read.
    """
    author = fields.get("FromUserName", "")
    kind = fields.get("MsgType", "")
    if author == fields.get("ToUserName"):
        return "own"
    if kind not in _WRITTEN:
        return "unknown"
    text = fields.get(_TEXTS.get(kind, ""), "").strip()
    # A voice that the platform has understood needs nobody else's ear.
    mime = "" if text else _FILES.get(kind, "")
    return UserMessage(
        event_id=fields.get("MsgId") or f"{author}/{fields.get('CreateTime', '')}",
        address=Address(channel=channel, thread=author, target={"user": author}),
        author=author,
        content=text,
        files=remote_files([(mime, fields.get("MediaId", ""), "")]),
    )

"""The parts that we read of what Feishu sends. What Feishu adds is ignored."""

from pydantic import BaseModel, ConfigDict


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Header(_Payload):
    event_id: str
    event_type: str
    app_id: str = ""


class Callback(_Payload):
    """An event of schema 2.0, or a callback of a card, which has the same form."""

    header: Header
    event: dict[str, object]


class UserIds(_Payload):
    open_id: str | None = None
    user_id: str | None = None


class Mention(_Payload):
    #: What stands in the text for it: `@_user_1`.
    key: str
    name: str = ""
    id: UserIds = UserIds()
    #: `bot` or `user`; older events have none.
    mentioned_type: str | None = None


class Sender(_Payload):
    sender_id: UserIds = UserIds()
    #: `user`, or `app` of bots.
    sender_type: str = ""


class Message(_Payload):
    message_id: str
    #: The first message, of an answer or of a topic.
    root_id: str = ""
    #: The topic, in which all messages have the same root.
    thread_id: str = ""
    chat_id: str
    #: `p2p` or `group`.
    chat_type: str = ""
    message_type: str
    #: JSON of the type's own form.
    content: str = ""
    mentions: tuple[Mention, ...] = ()


class MessageReceived(_Payload):
    """https://open.feishu.cn/document/uAjLw4CM/ukTMukTMukTM/reference/im-v1/message/events/receive"""

    sender: Sender
    message: Message


class Action(_Payload):
    value: dict[str, object] = {}


class Context(_Payload):
    open_message_id: str = ""
    open_chat_id: str = ""


class CardAction(_Payload):
    """https://open.feishu.cn/document/uAjLw4CM/ukzMukzMukzM/feishu-cards/card-callback-communication"""

    operator: UserIds
    action: Action
    context: Context

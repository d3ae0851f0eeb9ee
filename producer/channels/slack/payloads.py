"""The parts that we read of what Slack sends. What Slack adds is ignored."""

from pydantic import BaseModel, ConfigDict


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Authorization(_Payload):
    user_id: str | None = None
    is_bot: bool = False


class EventCallback(_Payload):
    """https://docs.slack.dev/apis/events-api#receiving-events"""

    team_id: str = ""
    api_app_id: str = ""
    event_id: str
    event: dict[str, object]
    authorizations: tuple[Authorization, ...] = ()

    @property
    def bot_user(self) -> str | None:
        """The id of the user that the app writes as."""
        return next((a.user_id for a in self.authorizations if a.is_bot), None)


class File(_Payload):
    """https://docs.slack.dev/reference/objects/file-object"""

    name: str | None = None
    mimetype: str | None = None
    url_private_download: str | None = None


class MessageEvent(_Payload):
    """`message` and `app_mention`: https://docs.slack.dev/reference/events/message"""

    type: str
    subtype: str | None = None
    channel: str
    channel_type: str = ""
    #: The message's id within its channel.
    ts: str
    #: The id of the message that began the thread, where it is in one.
    thread_ts: str | None = None
    user: str | None = None
    text: str | None = None
    files: tuple[File, ...] = ()
    bot_id: str | None = None
    app_id: str | None = None


class ReactionItem(_Payload):
    type: str
    channel: str = ""
    ts: str = ""


class ReactionEvent(_Payload):
    """https://docs.slack.dev/reference/events/reaction_added"""

    type: str
    user: str
    reaction: str
    item: ReactionItem
    item_user: str | None = None


class SlashCommand(_Payload):
    """https://docs.slack.dev/interactivity/implementing-slash-commands"""

    command: str
    text: str = ""
    team_id: str = ""
    channel_id: str
    user_id: str
    trigger_id: str
    response_url: str = ""


class _Id(_Payload):
    id: str = ""
    name: str = ""


class _Message(_Payload):
    ts: str = ""
    thread_ts: str | None = None


class Action(_Payload):
    action_id: str
    block_id: str = ""
    value: str | None = None
    action_ts: str = ""


class BlockActions(_Payload):
    """https://docs.slack.dev/reference/interaction-payloads/block_actions-payload"""

    type: str
    team: _Id | None = None
    user: _Id
    channel: _Id = _Id()
    container: _Message = _Message()
    message: _Message = _Message()
    response_url: str = ""
    actions: tuple[Action, ...] = ()

    @property
    def thread_ts(self) -> str | None:
        return self.message.thread_ts or self.container.thread_ts

    @property
    def is_direct(self) -> bool:
        return self.channel.name == "directmessage" or self.channel.id.startswith("D")

"""What Chatwoot's webhook sends to an agent bot, as far as it matters.

Read in the source of Chatwoot 4.13 and later: `app/listeners/agent_bot_listener.rb`, `webhook_data`
of `app/models/message.rb`, and `app/presenters/conversations/event_data_presenter.rb`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Conversation(_Payload):
    #: The number that people see (`display_id`), unique within the account.
    id: int
    #: `pending` while a bot answers, `open` or `snoozed` while people do, and `resolved`.
    status: str
    #: The class of the inbox's channel: `Channel::WebWidget`.
    channel: str = Field(default="", max_length=100)
    #: Unix seconds with a fraction; whole seconds of the last activity, where it is missing.
    updated_at: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    timestamp: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def as_of(self) -> float:
        return self.timestamp if self.updated_at is None else self.updated_at


class Changed(Conversation):
    """A conversation was opened or resolved. Nothing comes when one becomes pending."""

    event: Literal["conversation_opened", "conversation_resolved"]


class Sender(_Payload):
    id: int
    #: `user` (a person of the team) or `agent_bot`; customers have none.
    type: str = ""


class Account(_Payload):
    id: int


class Attachment(_Payload):
    file_type: str = ""
    data_url: str = ""


class Message(_Payload):
    event: Literal["message_created"]
    id: int
    content: str | None = None
    message_type: str
    #: A note that the team alone sees.
    private: bool = False
    sender: Sender | None = None
    account: Account
    conversation: Conversation
    attachments: tuple[Attachment, ...] = ()

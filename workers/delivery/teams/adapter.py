"""Bring replies to Teams by the Bot Connector: in a message that is edited while it is written.

Teams has no key that makes a message idempotent, and a bot without permissions of Microsoft Graph
cannot read what it sent. Relied on, from Microsoft's pages: a bot's message may have 100 KB, one in
the limits of Teams 28 KB, both of the whole message in UTF-16; the smaller is kept to. A bot may
call seven times a second and 1,800 times an hour in one conversation.
https://learn.microsoft.com/microsoftteams/platform/bots/how-to/format-your-bot-messages
https://learn.microsoft.com/microsoftteams/limits-specifications-teams

`streaminfo`, Teams' own streaming, is not used: it ends after two minutes, is not shown on iOS, and
serves personal chats alone.
https://learn.microsoft.com/microsoftteams/platform/bots/streaming-ux
"""

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import message_key
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.teams.calls import GONE, Calls
from turnmill.workers.delivery.teams.markdown import most_bytes, to_teams

#: Bytes of a text in UTF-16, as JSON; the rest of a message takes less than 3 KB.
MAX_TEXT = 25_000
#: 1,200 calls an hour.
WRITE_EVERY_S = 3.0


class TeamsDelivery(PartsDelivery):
    """One bot's way out."""

    limit = MAX_TEXT
    #: How long Teams shows it is not documented.
    typing_every_s = 4.0
    place = "conversation"
    deleted = GONE

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, TeamsSection)
        super().__init__()
        self._calls = Calls(section, settings.timeout_s)
        self._streams = section.streams

    def measure(self, text: str) -> int:
        return most_bytes(text)

    def write_every_s(self, job: Job) -> float | None:
        return WRITE_EVERY_S if self._streams else None

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        given = _message(job, part, buttons, is_first=number == 0)
        if number == 0 and job.target.get("type") == "channel" and "message" in job.target:
            given["replyToId"] = job.target["message"]
        sent = self._calls.call("POST", job.target, "", given)
        return message_key(job.target["conversation"], sent)

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        given = _message(job, part, buttons, is_first=True)
        activity = message.rpartition("/")[2]
        self._calls.call("PUT", job.target, activity, given | {"id": activity})

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bots-filesv4"""
        return self._calls.fetch(ref, max_bytes)

    def show_typing(self, job: Job) -> None:
        self._calls.call("POST", job.target, "", _activity(job, "typing"))


def _activity(job: Job, kind: str) -> dict[str, object]:
    given: dict[str, object] = {"type": kind, "conversation": {"id": job.target["conversation"]}}
    if bot := job.target.get("bot"):
        given["from"] = {"id": bot}
    return given


def _message(
    job: Job, part: str, buttons: tuple[Button, ...], *, is_first: bool
) -> dict[str, object]:
    """A message with what may stand under it.

    The thumbs are Teams' own, and stand under the first message, by which a judgement is found.
    https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bot-messages-ai-generated-content
    """
    given = _activity(job, "message") | {"text": to_teams(part), "textFormat": "markdown"}
    if job.is_reply:
        given["entities"] = [_AI_LABEL]
        if is_first and job.text is not None:
            given["channelData"] = {"feedbackLoop": {"type": "default"}}
    others = [each for each in buttons if ":" not in each.value]
    if others:
        given["attachments"] = [_card(others, job.target["conversation"])]
    return given


_AI_LABEL = {
    "type": "https://schema.org/Message",
    "@type": "Message",
    "@context": "https://schema.org",
    "additionalType": ["AIGeneratedContent"],
}


def _card(buttons: list[Button], thread: str) -> dict[str, object]:
    """https://learn.microsoft.com/microsoftteams/platform/task-modules-and-cards/cards/cards-actions"""
    actions = [
        {
            "type": "Action.Submit",
            "title": button.label,
            "data": {"turnmill": button.value, "thread": thread},
        }
        for button in buttons
    ]
    content = {"type": "AdaptiveCard", "version": "1.4", "body": [], "actions": actions}
    return {"contentType": "application/vnd.microsoft.card.adaptive", "content": content}

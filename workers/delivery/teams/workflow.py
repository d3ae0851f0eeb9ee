"""Bring replies to a channel of Teams by a workflow's address, as Adaptive Cards.

The template "Post to a channel when a webhook request is received" posts the cards that it is sent
as new messages; the older incoming webhooks take the same form.
https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/add-incoming-webhook

Messages cannot be edited, looked up or sent with a key of ours. Relied on: a message holds 28 KB
(https://learn.microsoft.com/microsoftteams/limits-specifications-teams). That an older webhook
answers a limit with 200 and says so in words stands in Microsoft's "Create and send messages".
"""

import json
from urllib.parse import urlsplit

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.teams_webhook import TeamsWebhookSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused, SettingsError
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Job
from turnmill.workers.delivery.calls.posting import post
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.teams.markdown import most_bytes
from turnmill.workers.delivery.texts.dialects import Dialect, translate

#: Bytes of a card's text.
MAX_TEXT = 20_000
#: A limit that does not say how long to wait, seconds.
_RETRY_AFTER_S = 10.0
_LIMITED = b"HTTP error 429"

_ADVICE = (
    "Is the workflow there and turned on, and has it an owner? If its address is another one now, "
    "change reply_url and retry the delivery."
)


class WorkflowDelivery(PartsDelivery):
    """One channel's way out."""

    shows_progress = False
    limit = MAX_TEXT
    typing_every_s = 60.0
    #: One address has one limit, whatever the conversation.
    place = "workflow"

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, TeamsWebhookSection)
        super().__init__()
        self._url = section.reply_url.read().get_secret_value()
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"The {section.reply_url.place} holds no URL of a workflow.")
        self._timeout_s = settings.timeout_s

    def measure(self, text: str) -> int:
        return max(most_bytes(text), len(json.dumps(text)))

    def write_every_s(self, job: Job) -> float | None:
        return None

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        """Send a card, which gets no id. Buttons that come back are not there without a bot."""
        attachment = {
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": None,
            "content": card(part),
        }
        given: dict[str, object] = {"type": "message", "attachments": [attachment]}
        # For a workflow of one's own, which answers in the thread.
        given["turnmill"] = {
            "conversation": job.target.get("conversation", ""),
            "message": job.target.get("message", ""),
        }
        body = json.dumps(given).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "turnmill"}
        answer = post(self._url, body, headers, self._timeout_s)
        if answer.status == 429 or (answer.status == 200 and _LIMITED in answer.body):
            after_s = answer.retry_after_s or _RETRY_AFTER_S
            raise ChannelUnavailable("Teams' limit of messages", retry_after_s=after_s)
        if answer.status >= 500 or answer.status in (408, 425):
            raise ChannelUnavailable(f"The workflow answered {answer.status}.", is_doubtful=True)
        if not 200 <= answer.status < 300:
            code = f"http_{answer.status}"
            message = f"The workflow refused the message: {answer.status}. {_ADVICE}"
            raise DeliveryRefused(message, reason=code)
        return ""

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        raise DeliveryRefused("A workflow edits no messages.", reason="no_edits")

    def show_typing(self, job: Job) -> None:
        """A workflow has no such sign."""


def card(text: str) -> dict[str, object]:
    """A card with the text: https://learn.microsoft.com/microsoftteams/platform/task-modules-and-cards/cards/cards-format"""
    body = [_element(part, is_code=bool(n % 2)) for n, part in enumerate(_parted(text))]
    return {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.5",
        "body": [each for each in body if each],
        "msteams": {"width": "Full"},
    }


def _parted(text: str) -> list[str]:
    """Prose and code in turns, prose first. No reply has the control character (`storable`)."""
    return translate(text, _DIALECT).split(_MARK)


def _element(part: str, *, is_code: bool) -> dict[str, object] | None:
    part = part.strip("\n")
    if is_code:
        return {"type": "CodeBlock", "codeSnippet": part, "language": "PlainText"}
    if not part.strip():
        return None
    # A line ends with an empty one.
    lines = "\n\n".join(line for line in part.split("\n") if line.strip())
    return {"type": "TextBlock", "text": lines, "wrap": True}


def _link(label: str, url: str) -> str:
    if not label:
        return url
    is_web = url.startswith(("http://", "https://", "mailto:"))
    return f"[{label}]({url})" if is_web else f"{label} ({url})"


_MARK = "\x05"
#: Of Markdown a card shows bold, italic, links and lists.
_DIALECT = Dialect(
    escape=lambda text: text,
    bold=("**", "**"),
    italic=("_", "_"),
    struck=("", ""),
    code=("", ""),
    quote=("", ""),
    link=_link,
    fence=lambda language: _MARK,
    fence_end=_MARK,
)

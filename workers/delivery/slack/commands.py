"""Answers to slash commands, which have no thread: through a response URL, and later by a message.

A response URL works where the app is no member, five times within thirty minutes. Who has to wait
longer, for a person who answers or after an outage, gets a message in the same place, if the app
may write there. https://docs.slack.dev/interactivity/handling-user-interaction#message_responses
"""

from typing import Any

from turnmill.schemas.errors import DeliveryRefused
from turnmill.workers.delivery.base import Job, Memory
from turnmill.workers.delivery.slack.blocks import buttons, metadata, section
from turnmill.workers.delivery.slack.calls import URL_EXPIRED, Calls
from turnmill.workers.delivery.slack.mrkdwn import pieces_of, rendered_length
from turnmill.workers.delivery.slack.sent import find_parts, note_part
from turnmill.workers.delivery.texts.markdown import split

#: Characters of a part, for a response URL may be used five times.
_MAX_RESPONSE = 9_000


def is_command(job: Job) -> bool:
    """Whether it came from a slash command, in a place where the app may be no member.

    The channel's id does not tell: that of a direct message between two people begins with D too.
    """
    return "response_url" in job.target and job.target.get("is_command") == "yes"


def respond(calls: Calls, job: Job, memory: Memory) -> bool:
    """Send the text, or what is missing of it; False if there was nothing to send.

    Nothing can be looked up behind a response URL: a part in doubt is sent again.
    """
    parts = [] if job.text is None else split(job.text, _MAX_RESPONSE, rendered_length)
    done = memory.value.get("parts", {})
    for number, part in enumerate(parts):
        if str(number) not in done:
            below = buttons(job) if number == len(parts) - 1 else []
            note_part(memory, number, _send(calls, job, number, pieces_of(part), below))
    return bool(parts)


def _send(
    calls: Calls, job: Job, number: int, pieces: list[str], below: list[dict[str, object]]
) -> str:
    """Send a part; the message's `ts`, or a word where Slack does not say it."""
    blocks = [section(piece) for piece in pieces] + below
    body: dict[str, Any] = {"text": "\n".join(pieces), "blocks": blocks}
    try:
        calls.respond(job.target["response_url"], {"response_type": "in_channel", **body})
    except DeliveryRefused as error:
        if error.reason != URL_EXPIRED:
            raise
        return _post(calls, job, number, body, expired=error)
    return "response"


def _post(
    calls: Calls, job: Job, number: int, body: dict[str, Any], *, expired: DeliveryRefused
) -> str:
    """Post a part where the command was given; the first one mentions whoever gave it."""
    if number == 0 and (user := job.target.get("user")):
        blocks = [section(f"<@{user}>"), *body["blocks"]]
        body = {"text": f"<@{user}> {body['text']}", "blocks": blocks}
    try:
        if job.is_doubtful and (ts := find_parts(calls, job).get(str(number))):
            return ts
        answer = calls.call(
            "chat.postMessage",
            job.target["channel"],
            **body,
            metadata=metadata(job.delivery_id, number),
            unfurl_links=False,
            unfurl_media=False,
        )
    except DeliveryRefused as error:
        raise DeliveryRefused(f"{expired.message} {error.message}", reason=URL_EXPIRED) from None
    return str(answer["ts"])

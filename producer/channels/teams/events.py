"""What Teams sends, in our words. A word instead of an event says why there is none."""

import json
from typing import Literal

from turnmill.producer.channels.base import content_of, remote_files
from turnmill.producer.channels.teams.payloads import Activity
from turnmill.producer.channels.teams.texts import text_of
from turnmill.schemas.channels.buttons import read_button
from turnmill.schemas.channels.events import Address, Event, Origin, Rating, UserMessage
from turnmill.schemas.channels.teams import CHANNEL, Services, chat_of, message_key
from turnmill.schemas.content import storable_json

Score = Literal[-1, 0, 1]

#: https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bot-messages-ai-generated-content
_FEEDBACK: dict[str, Score] = {"like": 1, "dislike": -1}
#: Beside `like` and `heart`, Teams names reactions by their code point; that was not verified.
_REACTIONS: dict[str, Score] = {"like": 1, "heart": 1, "1f44d": 1, "1f44e": -1}


def read_event(channel: str, app_id: str, services: Services, activity: Activity) -> Event | str:
    """Read an activity of Teams. Raises pydantic's `ValidationError`."""
    if activity.channelId != CHANNEL:
        return "unknown"
    if activity.sender.id in (activity.recipient.id, f"28:{app_id}"):
        return "own"
    if activity.sender.role == "bot" or activity.sender.id.startswith("28:"):
        return "bot"
    match activity.type:
        case "message" if isinstance(activity.value, dict) and not activity.text:
            return _button(channel, activity, activity.value)
        case "message":
            return _message(channel, services, activity)
        case "invoke":
            return _feedback(channel, activity)
        case "messageReaction":
            return _reaction(channel, activity)
        case "messageUpdate":
            return "edit"
    return "unknown"


def _message(channel: str, services: Services, activity: Activity) -> Event | str:
    bot, place = activity.recipient.id, activity.conversation.conversationType
    mentions = [each.mentioned for each in activity.entities if each.is_mention and each.mentioned]
    is_for_bot = place == "personal" or any(each.id == bot for each in mentions)
    if not is_for_bot and place != "channel":
        # With the permission to read a group chat, Teams sends all of it.
        return "not_addressed"
    text = text_of(activity.text or "", activity.entities, bot)
    content = content_of(text, activity.files)
    return UserMessage(
        **_common(channel, activity),
        content=content,
        # A picture of another site is named, as files are that nobody reads.
        files=remote_files(each for each in activity.remote if services.has(each[1])),
        begins=is_for_bot,
    )


def _button(channel: str, activity: Activity, value: dict[str, object]) -> Event | str:
    """A button of one of our cards, whose value names its thread."""
    thread, here = str(value.get("thread") or ""), activity.conversation.id
    if chat_of(thread) != chat_of(here):
        thread = here
    common = _common(channel, activity, thread)
    return read_button(str(value.get("turnmill", "")), **common) or "action"


def _feedback(channel: str, activity: Activity) -> Event | str:
    """https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bot-messages-ai-generated-content#handle-feedback"""
    value = activity.value if isinstance(activity.value, dict) else {}
    given = value.get("actionValue")
    if activity.name != "message/submitAction" or not isinstance(given, dict):
        return "invoke"
    score = _FEEDBACK.get(str(given.get("reaction")))
    if score is None or activity.replyToId is None:
        return "invoke"
    return _rating(channel, activity, score, _comment(given.get("feedback")))


def _comment(feedback: object) -> str | None:
    """What was written into the form, a string of JSON."""
    try:
        found = storable_json(json.loads(feedback)) if isinstance(feedback, str) else feedback
    except (ValueError, RecursionError):
        return None
    text = found.get("feedbackText") if isinstance(found, dict) else None
    return text[:2000] if isinstance(text, str) and text else None


def _reaction(channel: str, activity: Activity) -> Event | str:
    added = next((_score(each.type) for each in activity.reactionsAdded), None)
    removed = next((_score(each.type) for each in activity.reactionsRemoved), None)
    score: Score | None = added if added is not None else (None if removed is None else 0)
    if score is None or activity.replyToId is None:
        return "reaction"
    return _rating(channel, activity, score, None)


def _score(reaction: str) -> Score | None:
    return _REACTIONS.get(reaction.partition("_")[0])


def _rating(channel: str, activity: Activity, score: Score, comment: str | None) -> Rating:
    assert activity.replyToId is not None
    message = message_key(activity.conversation.id, activity.replyToId)
    return Rating(**_common(channel, activity), message_id=message, score=score, comment=comment)


def _common(channel: str, activity: Activity, thread: str | None = None) -> Origin:
    """A chat is one conversation, and so is each thread of a channel."""
    conversation = thread or activity.conversation.id
    target = {
        "service": activity.serviceUrl,
        "conversation": conversation,
        "type": activity.conversation.conversationType,
        "message": activity.id,
        "bot": activity.recipient.id,
    }
    return {
        "event_id": message_key(activity.conversation.id, activity.id),
        "address": Address(channel=channel, thread=conversation, target=target),
        "author": activity.sender.id,
    }

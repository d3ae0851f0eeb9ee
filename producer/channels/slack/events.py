"""What Slack sends, in our words. A word instead of an event says why there is none."""

import re
from collections.abc import Iterator
from typing import Literal

from turnmill.producer.channels.base import content_of, remote_files
from turnmill.producer.channels.slack.mrkdwn import plain_text
from turnmill.producer.channels.slack.payloads import (
    Action,
    BlockActions,
    EventCallback,
    MessageEvent,
    ReactionEvent,
    SlashCommand,
)
from turnmill.schemas.channels.events import (
    Address,
    Command,
    Event,
    Rating,
    UserMessage,
)
from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.ids import Prefix

#: Messages that people write; the other subtypes are changes, deletions and Slack's own remarks.
_WRITTEN = {None, "file_share", "me_message", "thread_broadcast"}

_SCORES: dict[str, Literal[1, -1]] = {"+1": 1, "thumbsup": 1, "-1": -1, "thumbsdown": -1}
_VALUES: dict[str, Literal[1, -1]] = {"good": 1, "bad": -1}
_COMMANDS = {"turnmill_hand_off": CommandName.HAND_OFF, "turnmill_resume": CommandName.RESUME}
_WORDS = {"stop": CommandName.STOP, "reset": CommandName.RESET}
_FEEDBACK = "turnmill_feedback"
_TURN = f"turnmill:{Prefix.TURN}_"

#: What Slack copies as the link of a message.
_LINK = re.compile(r"https://[\w.-]+/archives/([A-Z0-9]+)/p(\d{10})(\d{6})(?:\?(\S*))?")
_ROOT = re.compile(r"(?:^|&)thread_ts=(\d{10}\.\d{6})(?:&|$)")


def read_event(channel: str, callback: EventCallback) -> Event | str:
    """Read an event of the Events API. Raises pydantic's `ValidationError`."""
    match callback.event.get("type"):
        case "message" | "app_mention":
            return _message(channel, callback, MessageEvent.model_validate(callback.event))
        case "reaction_added" | "reaction_removed":
            return _reaction(channel, callback, ReactionEvent.model_validate(callback.event))
        case _:
            return "unknown"


def _message(channel: str, callback: EventCallback, message: MessageEvent) -> Event | str:
    if message.subtype not in _WRITTEN and message.subtype != "bot_message":
        return "edit" if message.subtype in ("message_changed", "message_deleted") else "subtype"
    if message.user is not None and message.user == callback.bot_user:
        return "own"
    if message.bot_id is not None or message.subtype == "bot_message":
        return "own" if message.app_id and message.app_id == callback.api_app_id else "bot"
    if message.user in (None, "USLACKBOT"):
        return "bot"
    is_mention, is_direct = message.type == "app_mention", message.channel_type == "im"
    if not is_mention and not is_direct and _mentions(message.text, callback.bot_user):
        # Slack sends it as an app_mention, too.
        return "mention"
    root = message.thread_ts or (None if is_direct else message.ts)
    target = {"team": callback.team_id, "channel": message.channel, "user": message.user}
    target |= {"message_ts": message.ts} | ({"thread_ts": root} if root else {})
    return UserMessage(
        event_id=callback.event_id,
        address=Address(channel=channel, thread=_thread(message.channel, root), target=target),
        author=message.user,
        content=content_of(
            plain_text(message.text or "", callback.bot_user),
            ((file.name, file.mimetype) for file in message.files),
        ),
        files=remote_files(
            (file.mimetype or "", file.url_private_download or "", file.name or "")
            for file in message.files
        ),
        begins=is_mention or is_direct,
    )


def _mentions(text: str | None, user: str | None) -> bool:
    return user is not None and text is not None and f"<@{user}>" in text


def _thread(channel: str, root: str | None) -> str:
    return f"{channel}/{root}" if root else channel


def threads_of_link(link: str) -> list[str]:
    """Name the threads that the message behind a link may belong to; none: it is no such link.

    Outside of threads a direct message belongs to the conversation of its channel.
    """
    found = _LINK.fullmatch(link.strip())
    if found is None:
        return []
    channel, seconds, micros, query = found.groups()
    root = _ROOT.search(query or "")
    return [_thread(channel, root[1] if root else f"{seconds}.{micros}"), _thread(channel, None)]


def _reaction(channel: str, callback: EventCallback, reaction: ReactionEvent) -> Event | str:
    """A thumb on one of our messages; the skin tone after `::` does not matter."""
    score = _SCORES.get(reaction.reaction.partition("::")[0])
    if score is None or reaction.item_user != callback.bot_user:
        return "reaction"
    if reaction.user == callback.bot_user:
        return "own"
    item = reaction.item
    return Rating(
        event_id=callback.event_id,
        address=Address(
            channel=channel,
            thread=_thread(item.channel, item.ts),
            target={"team": callback.team_id, "channel": item.channel, "user": reaction.user},
        ),
        author=reaction.user,
        message_id=item.ts,
        score=score if reaction.type == "reaction_added" else 0,
    )


def read_command(channel: str, command: SlashCommand) -> Event | str:
    """Read a slash command, which has no thread: a person has one conversation with it in each
    place. `help`, and nothing at all, ask for an explanation."""
    text = plain_text(command.text)
    word = text.lower()
    if word in ("", "help"):
        return "help"
    address = Address(
        channel=channel,
        thread=f"{command.channel_id}/@{command.user_id}",
        target={
            "team": command.team_id,
            "channel": command.channel_id,
            "user": command.user_id,
            "response_url": command.response_url,
            "is_command": "yes",
        },
    )
    event_id, author = command.trigger_id, command.user_id
    if (name := _WORDS.get(word)) is not None:
        return Command(event_id=event_id, address=address, author=author, name=name)
    return UserMessage(event_id=event_id, address=address, author=author, content=text)


def read_actions(channel: str, pressed: BlockActions) -> Iterator[Event]:
    """Read the buttons of ours that were pressed."""
    is_command = not (pressed.thread_ts or pressed.is_direct)
    thread = _thread(pressed.channel.id, pressed.thread_ts)
    if is_command:
        thread = f"{pressed.channel.id}/@{pressed.user.id}"
    message_ts = pressed.message.ts or pressed.container.ts
    target = {
        "team": pressed.team.id if pressed.team else "",
        "channel": pressed.channel.id,
        "user": pressed.user.id,
        "response_url": pressed.response_url,
    }
    if pressed.thread_ts:
        target["thread_ts"] = pressed.thread_ts
    if is_command:
        target["is_command"] = "yes"
    address = Address(channel=channel, thread=thread, target=target)
    for action in pressed.actions:
        event_id = f"{pressed.channel.id}/{message_ts}/{action.action_ts}/{action.action_id}"
        event = _action(event_id, address, pressed.user.id, action)
        if event is not None:
            yield event


def _action(event_id: str, address: Address, author: str, action: Action) -> Event | None:
    if (name := _COMMANDS.get(action.action_id)) is not None:
        named = action.block_id.partition(":turnmill:")[2]
        return Command(
            event_id=event_id, address=address, author=author, name=name,
            turn_id=named if named.startswith(f"{Prefix.TURN}_") else None,
            conversation_id=named if named.startswith(f"{Prefix.CONVERSATION}_") else None,
        )  # fmt: skip
    if action.action_id != _FEEDBACK or not action.block_id.startswith(_TURN):
        return None
    return Rating(
        event_id=event_id,
        address=address,
        author=author,
        turn_id=action.block_id.removeprefix("turnmill:"),
        score=_VALUES.get(action.value or "", 0),
    )

"""Methods of the Web API, with the rules that their pages state.

Each takes the call's arguments and returns the answer without `ok`; an error of Slack's is raised
as `Refusal`. Pages: https://docs.slack.dev/reference/methods/<name>
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.slack.messages import Board, Posted
from turnmill.infra.mocks.slack.payloads import new_ts

#: Characters. Longer texts are cut by `chat.postMessage`, and refused by `chat.update`.
MAX_TEXT, MAX_UPDATE = 40_000, 4_000
MAX_MARKDOWN, MAX_SECTION, MAX_BLOCKS, MAX_BLOCK_ID = 12_000, 3_000, 50, 255
MAX_METADATA = 8_000


class Refusal(Exception):
    """An answer with `ok: false`."""


@dataclass
class Methods:
    """The Web API of one workspace."""

    board: Board
    #: Whether the workspace streams.
    streams: bool = True
    #: Errors that a channel answers with, by channel: `is_archived`, `not_in_channel`, ...
    troubles: dict[str, str] = field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, Callable[[Payload], Payload]]:
        return {
            "auth.test": self.auth_test,
            "chat.postMessage": self.post,
            "chat.update": self.update,
            "chat.startStream": self.start_stream,
            "chat.appendStream": self.append_stream,
            "chat.stopStream": self.stop_stream,
            "conversations.replies": self.replies,
            "conversations.history": self.history,
            "assistant.threads.setStatus": self.set_status,
        }

    def auth_test(self, _: Payload) -> Payload:
        workspace = self.board.workspace
        return {
            "url": "https://turnmill.slack.com/",
            "team": "Turnmill",
            "user": "turnmill",
            "team_id": workspace.team,
            "user_id": workspace.bot_user,
            "bot_id": workspace.bot_id,
            "is_enterprise_install": False,
        }

    def post(self, given: Payload) -> Payload:
        channel = self._channel(given)
        content = _content(given)
        message = self.board.add(
            Posted(
                channel,
                new_ts(),
                content["text"][:MAX_TEXT],
                given.get("thread_ts"),
                content["blocks"],
                content["metadata"],
            )
        )
        return {"channel": channel, "ts": message.ts, "message": self._shown(message, True)}

    def update(self, given: Payload) -> Payload:
        message = self._message(given)
        if message.is_streaming:
            raise Refusal("streaming_state_conflict")
        content = _content(given)
        if "markdown_text" not in given and len(content["text"]) > MAX_UPDATE:
            raise Refusal("msg_too_long")
        with self.board.lock:
            message.text, message.blocks = content["text"], content["blocks"]
            message.metadata = content["metadata"] or message.metadata
            message.history.append(message.text)
        return {"channel": message.channel, "ts": message.ts, "text": message.text}

    def start_stream(self, given: Payload) -> Payload:
        channel = self._channel(given)
        if not self.streams:
            raise Refusal("channel_type_not_supported")
        if not given.get("thread_ts"):
            raise Refusal("invalid_arguments")
        if not channel.startswith("D"):
            for name in ("recipient_user_id", "recipient_team_id"):
                if not given.get(name):
                    raise Refusal(f"missing_{name}")
        text = _markdown(given)
        message = Posted(channel, new_ts(), text, given["thread_ts"], is_streaming=True)
        return {"channel": channel, "ts": self.board.add(message).ts}

    def append_stream(self, given: Payload) -> Payload:
        message = self._streaming(given)
        if not (text := _markdown(given)):
            raise Refusal("no_text")
        self._append(message, text)
        return {"channel": message.channel, "ts": message.ts}

    def stop_stream(self, given: Payload) -> Payload:
        message = self._streaming(given)
        self._append(message, _markdown(given))
        with self.board.lock:
            message.is_streaming = False
            message.blocks = _blocks(given)
            message.metadata = _metadata(given)
        return {"channel": message.channel, "ts": message.ts, "message": self._shown(message, True)}

    def end_streams(self) -> None:
        """End every open stream, as Slack does by itself after some minutes."""
        with self.board.lock:
            for message in self.board.messages:
                message.is_streaming = False

    def replies(self, given: Payload) -> Payload:
        channel, ts = self._channel(given), str(given.get("ts", ""))
        found = self.board.thread(channel, ts)
        if not found:
            raise Refusal("thread_not_found")
        return self._page(found, given)

    def history(self, given: Payload) -> Payload:
        channel = self._channel(given)
        with self.board.lock:
            found = [m for m in self.board.messages if m.channel == channel and not m.thread_ts]
        return self._page(found[::-1], given)

    def set_status(self, given: Payload) -> Payload:
        channel = self._channel({"channel": given.get("channel_id")})
        if not given.get("thread_ts"):
            raise Refusal("invalid_thread_ts")
        self.board.set_status(channel, given["thread_ts"], str(given.get("status", "")))
        return {}

    def _channel(self, given: Payload) -> str:
        channel = str(given.get("channel") or "")
        if channel[:1] not in ("C", "D", "G"):
            raise Refusal("channel_not_found")
        if channel in self.troubles:
            raise Refusal(self.troubles[channel])
        return channel

    def _message(self, given: Payload) -> Posted:
        message = self.board.find(self._channel(given), str(given.get("ts", "")))
        if message is None:
            raise Refusal("message_not_found")
        if message.user is not None:
            raise Refusal("cant_update_message")
        return message

    def _streaming(self, given: Payload) -> Posted:
        message = self._message(given)
        if not message.is_streaming:
            raise Refusal("message_not_in_streaming_state")
        return message

    def _append(self, message: Posted, text: str) -> None:
        with self.board.lock:
            if len(message.text) + len(text) > MAX_MARKDOWN:
                raise Refusal("msg_too_long")
            message.text += text
            message.history.append(message.text)

    def _page(self, found: list[Posted], given: Payload) -> Payload:
        limit, start = int(given.get("limit") or 100), int(given.get("cursor") or 0)
        with_metadata = str(given.get("include_all_metadata", "")).lower() in ("1", "true")
        after = float(given.get("oldest") or 0)
        found = [m for m in found if float(m.ts) >= after]
        page = [self._shown(m, with_metadata) for m in found[start : start + limit]]
        more = start + limit < len(found)
        cursor = {"next_cursor": str(start + limit) if more else ""}
        return {"messages": page, "has_more": more, "response_metadata": cursor}

    def _shown(self, message: Posted, with_metadata: bool) -> Payload:
        workspace = self.board.workspace
        shown = {"type": "message", "ts": message.ts, "text": message.text, "team": workspace.team}
        if message.thread_ts:
            shown["thread_ts"] = message.thread_ts
        if message.user is not None:
            return shown | {"user": message.user}
        shown |= {"user": workspace.bot_user, "bot_id": workspace.bot_id, "app_id": workspace.app}
        more: Payload = {"blocks": message.blocks} if message.blocks else {}
        if with_metadata and message.metadata is not None:
            more["metadata"] = message.metadata
        return shown | more


def _content(given: Payload) -> Payload:
    """The text, blocks and metadata of a message."""
    blocks = _blocks(given)
    if "markdown_text" in given and (blocks or given.get("text")):
        raise Refusal("markdown_text_conflict")
    text = _markdown(given) or str(given.get("text") or "")
    if not text and not blocks:
        raise Refusal("no_text")
    return {"text": text, "blocks": blocks, "metadata": _metadata(given)}


def _markdown(given: Payload) -> str:
    text = str(given.get("markdown_text") or "")
    if len(text) > MAX_MARKDOWN:
        raise Refusal("msg_too_long")
    return text


def _blocks(given: Payload) -> list[Payload]:
    blocks = _json(given.get("blocks") or [], "invalid_blocks_format")
    if not isinstance(blocks, list) or len(blocks) > MAX_BLOCKS:
        raise Refusal("invalid_blocks")
    names = [block["block_id"] for block in blocks if "block_id" in block]
    if len(set(names)) < len(names) or any(len(name) > MAX_BLOCK_ID for name in names):
        raise Refusal("invalid_blocks")
    for block in blocks:
        text = block.get("text", {}).get("text") if block.get("type") == "section" else "-"
        if not text or len(text) > MAX_SECTION:
            raise Refusal("invalid_blocks")
    return blocks


def _metadata(given: Payload) -> Payload | None:
    if given.get("metadata") is None:
        return None
    metadata = _json(given["metadata"], "invalid_metadata_format")
    if not isinstance(metadata, dict) or set(metadata) != {"event_type", "event_payload"}:
        raise Refusal("invalid_metadata_format")
    if len(json.dumps(metadata)) > MAX_METADATA:
        raise Refusal("metadata_too_large")
    return metadata


def _json(value: object, error: str) -> Any:
    """Forms carry JSON as text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Refusal(error) from None

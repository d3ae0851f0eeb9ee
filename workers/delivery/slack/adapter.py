"""Bring replies to Slack: streamed while they are written, in parts, and never twice.

Every message carries which part of which delivery it is (`metadata`). A step whose outcome is in
doubt is looked up by that before it is repeated. A stream can carry none before it is stopped, so
one in doubt is found by being ours without any, and its text is set anew.

What is remembered of a delivery: `parts` (the messages that are complete, by their number),
`stream` or `draft` (the message that part 0 is being written in), `status`.

Not verified at Slack itself: that `conversations.replies` shows a message which is still streamed.
If it does not, a worker that is killed between `chat.startStream` and its commit leaves that
message behind, unfinished, beside the reply.
"""

import hashlib
import time
from typing import Any

from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.schemas.turns import TurnState
from turnmill.workers.delivery.base import Job, Look, Memory
from turnmill.workers.delivery.slack.blocks import MAX_SECTION, buttons, metadata, section
from turnmill.workers.delivery.slack.calls import Calls
from turnmill.workers.delivery.slack.commands import is_command, respond
from turnmill.workers.delivery.slack.mrkdwn import pieces_of, rendered_length, to_mrkdwn
from turnmill.workers.delivery.slack.sent import find_parts, find_stream, note_part
from turnmill.workers.delivery.slack.speech import say
from turnmill.workers.delivery.slack.waiting import status_of
from turnmill.workers.delivery.texts.markdown import closing, cut, open_fence, split

#: Characters of a streamed message: `markdown_text` takes 12,000.
MAX_STREAM = 11_500

#: Each message that is being written changes at most once in this time.
WRITE_EVERY_S = 1.0
#: A turn that waits is looked at so often, and less often for each turn before it.
WAIT_EVERY_S, WAIT_LONGER_S = 2.0, 0.1
#: Slack takes a status away after two minutes.
STATUS_EVERY_S = 90.0

#: Errors by which a workspace, or a place in it, says that it does not stream.
_NO_STREAM = frozenset(
    {
        "channel_type_not_supported", "method_not_supported_for_channel_type", "unknown_method",
        "access_denied", "not_allowed_token_type", "missing_recipient_user_id",
        "missing_recipient_team_id", "user_not_found", "invalid_arguments", "no_permission",
    }
)  # fmt: skip


#: Slack's errors about a message that is written: its stream has ended (Slack ends one by itself
#: after some minutes: https://github.com/slackapi/python-slack-sdk/issues/1859), or somebody
#: deleted it.
_ENDED, _DELETED = "message_not_in_streaming_state", "message_not_found"


class SlackDelivery:
    """One Slack app's way out."""

    shows_progress = True

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, SlackSection)
        token = section.bot_token.read().get_secret_value()
        self._calls = Calls(token, section.api_url, settings.timeout_s)
        self._streams = section.streams

    def close(self) -> None:
        """Every call has a connection of its own."""

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """Fetch a file. Needs the scope `files:read`.

        https://docs.slack.dev/reference/objects/file-object#authentication
        """
        return self._calls.download(ref, max_bytes)

    def say(self, job: Job, sound: bytes) -> str:
        return say(self._calls, job, sound)

    def send(self, job: Job, memory: Memory) -> bool:
        if is_command(job):
            return respond(self._calls, job, memory)
        if job.is_doubtful:
            self._recall(job, memory)
        if job.text is None:
            return self._leave(job, memory)
        parts = self._finish_draft(job, memory, job.text)
        for number, part in parts.items():
            if str(number) not in memory.value.get("parts", {}):
                is_last = number == max(parts)
                note_part(
                    memory, number, self._post(job, memory, number, part, with_buttons=is_last)
                )
        return True

    def show(self, job: Job, look: Look, memory: Memory) -> float | None:
        if is_command(job):
            return None
        if job.is_doubtful and _is_drafted(memory) and not memory.value.get("is_torn"):
            memory.keep(is_torn=True)
        if look.text.strip() and not memory.value.get("is_torn"):
            return self._write(job, look.text, memory)
        self._show_status(job, look, memory)
        if look.state is TurnState.RUNNING:
            return WRITE_EVERY_S
        return WAIT_EVERY_S + min(look.place or 0, 100) * WAIT_LONGER_S

    # The message that is being written.

    def _write(self, job: Job, text: str, memory: Memory) -> float | None:
        stream, draft = memory.value.get("stream"), memory.value.get("draft")
        if draft is not None:
            return self._edit(job, text, memory)
        if stream is None:
            if not self._can_stream(job, memory):
                return self._edit(job, text, memory)
            return self._start_stream(job, text, memory)
        sent = int(stream["sent"])
        if _digest(text[:sent]) != stream["digest"]:
            # Another attempt begins the reply anew: `send` sets the text right.
            memory.keep(is_torn=True)
            return None
        if more := text[sent : cut(text, MAX_STREAM, sent)]:
            try:
                self._call(job, "chat.appendStream", ts=stream["ts"], markdown_text=more)
            except DeliveryRefused as error:
                if error.reason != _ENDED:
                    raise
                memory.keep(is_torn=True)
                return None
            memory.keep(stream=_stream(stream["ts"], text[: sent + len(more)]))
        return WRITE_EVERY_S

    def _can_stream(self, job: Job, memory: Memory) -> bool:
        return self._streams and "thread_ts" in job.target and not memory.value.get("is_streamless")

    def _start_stream(self, job: Job, text: str, memory: Memory) -> float | None:
        shown = text[: cut(text, MAX_STREAM)]
        memory.keep(stream=_stream(None, ""))
        to = {
            "recipient_user_id": job.target.get("user"),
            "recipient_team_id": job.target.get("team"),
        }
        try:
            answer = self._call(
                job,
                "chat.startStream",
                thread_ts=job.target["thread_ts"],
                markdown_text=shown,
                **{name: value for name, value in to.items() if value},
            )
        except DeliveryRefused as error:
            memory.keep(stream=None)
            if error.reason not in _NO_STREAM:
                raise
            memory.keep(is_streamless=True)
            return self._edit(job, text, memory)
        except ChannelUnavailable as error:
            if not error.is_doubtful:
                memory.keep(stream=None)
            raise
        memory.keep(stream=_stream(answer["ts"], shown))
        return WRITE_EVERY_S

    def _edit(self, job: Job, text: str, memory: Memory) -> float | None:
        """Where nothing is streamed: a message that is changed again and again."""
        part, draft = split(text, MAX_SECTION, rendered_length)[0], memory.value.get("draft")
        if draft is None:
            memory.keep(draft={"ts": None, "digest": ""})
            try:
                draft = {"ts": self._post(job, memory, 0, part)}
            except ChannelUnavailable as error:
                if not error.is_doubtful:
                    memory.keep(draft=None)
                raise
        elif draft["digest"] == _digest(part):
            return WRITE_EVERY_S
        elif draft["ts"] is not None:
            self._update(job, memory, draft["ts"], part)
        memory.keep(draft={"ts": draft["ts"], "digest": _digest(part)})
        return WRITE_EVERY_S

    def _finish_draft(self, job: Job, memory: Memory, text: str) -> dict[int, str]:
        """Complete the message that was being written; the other parts, by their number."""
        try:
            return self._finish_begun(job, memory, text)
        except DeliveryRefused as error:
            if error.reason != _DELETED:
                raise
            memory.keep(stream=None, draft=None)
            return self._finish_begun(job, memory, text)

    def _finish_begun(self, job: Job, memory: Memory, text: str) -> dict[int, str]:
        stream, draft = memory.value.get("stream"), memory.value.get("draft")
        if stream and stream["ts"]:
            rest = self._finish_stream(job, memory, text)
            return dict(enumerate(split(rest, MAX_SECTION, rendered_length), start=1))
        parts = dict(enumerate(split(text, MAX_SECTION, rendered_length)))
        if draft and draft["ts"]:
            first = parts.pop(0)
            if "0" not in memory.value.get("parts", {}):
                self._update(job, memory, draft["ts"], first, with_buttons=not parts)
                note_part(memory, 0, draft["ts"])
        return parts

    def _finish_stream(self, job: Job, memory: Memory, text: str) -> str:
        """Complete a stream; the text that has no room in it."""
        stream = memory.value["stream"]
        ts, sent = stream["ts"], int(stream["sent"])
        is_torn = memory.value.get("is_torn") or _digest(text[:sent]) != stream["digest"]
        end = stream.get("end") or cut(text, MAX_STREAM, 0 if is_torn else sent)
        fence, rest = open_fence(text[:end]), text[end:].strip("\n")
        closed = f"\n{closing(fence)}" if fence and rest else ""
        if "0" not in memory.value.get("parts", {}):
            memory.keep(stream={**stream, "end": end})
            if is_torn or not self._stop(
                job, memory, ts, text[sent:end] + closed, with_buttons=not rest
            ):
                self._set_anew(job, ts, text[:end] + closed, with_buttons=not rest)
            note_part(memory, 0, ts)
        return f"{fence}\n{rest}" if fence and rest else rest

    def _stop(
        self, job: Job, memory: Memory, ts: str, text: str, *, with_buttons: bool = False
    ) -> bool:
        """Stop a stream with the rest of its text; False if it had ended already."""
        blocks = buttons(job) if with_buttons else []
        try:
            self._call(
                job,
                "chat.stopStream",
                ts=ts,
                metadata=metadata(job.delivery_id, 0),
                **({"markdown_text": text} if text else {}),
                **({"blocks": blocks} if blocks else {}),
            )
        except DeliveryRefused as error:
            if error.reason != _ENDED:
                raise
            memory.keep(is_torn=True)
            return False
        return True

    def _set_anew(self, job: Job, ts: str, text: str, *, with_buttons: bool) -> None:
        """Stop a stream of which nobody knows how far it is, and replace its text.

        `markdown_text` takes no buttons beside it: with them the text stands in sections.
        """
        try:
            self._call(job, "chat.stopStream", ts=ts)
        except DeliveryRefused as error:
            if error.reason != _ENDED:
                raise
        content: dict[str, Any] = {"markdown_text": text}
        if with_buttons and (under := buttons(job)):
            pieces = pieces_of(text)
            content = {"text": pieces[0], "blocks": [*map(section, pieces), *under]}
        self._call(job, "chat.update", ts=ts, metadata=metadata(job.delivery_id, 0), **content)

    def _leave(self, job: Job, memory: Memory) -> bool:
        """The turn was cancelled: what is shown stays, and a status goes."""
        stream, draft = memory.value.get("stream"), memory.value.get("draft")
        if stream and stream["ts"] and "0" not in memory.value.get("parts", {}):
            try:
                self._stop(job, memory, stream["ts"], "")
            except DeliveryRefused as error:
                if error.reason != _DELETED:
                    raise
            note_part(memory, 0, stream["ts"])
        elif not (stream or draft) and memory.value.get("status"):
            self._set_status(job, memory, "")
        return bool(stream or draft)

    # What Slack has already.

    def _recall(self, job: Job, memory: Memory) -> None:
        """Find out what became of the last attempt's last step."""
        parts = find_parts(self._calls, job)
        changes: dict[str, Any] = {"parts": memory.value.get("parts", {}) | parts}
        stream, draft = memory.value.get("stream"), memory.value.get("draft")
        if stream is not None:
            ts = stream["ts"] or parts.get("0") or find_stream(self._calls, job)
            changes |= {"stream": {**stream, "ts": ts} if ts else None, "is_torn": True}
        elif draft is not None:
            ts = draft["ts"] or parts.get("0")
            # It is part 0 that is still to be completed.
            changes["draft"] = {**draft, "ts": ts} if ts else None
            changes["parts"] = {n: each for n, each in changes["parts"].items() if n != "0"}
        memory.keep(**changes)

    # Calls.

    def _post(
        self, job: Job, memory: Memory, number: int, part: str, *, with_buttons: bool = False
    ) -> str:
        text = to_mrkdwn(part)
        blocks = buttons(job) if with_buttons else []
        answer = self._call(
            job,
            "chat.postMessage",
            text=text,
            metadata=metadata(job.delivery_id, number),
            unfurl_links=False,
            unfurl_media=False,
            **({"blocks": [section(text), *blocks]} if blocks else {}),
            **({"thread_ts": ts} if (ts := job.target.get("thread_ts")) else {}),
        )
        return str(answer["ts"])

    def _update(
        self, job: Job, memory: Memory, ts: str, part: str, *, with_buttons: bool = False
    ) -> None:
        text = to_mrkdwn(part)
        blocks = buttons(job) if with_buttons else []
        more = {"blocks": [section(text), *blocks]} if blocks else {}
        self._call(job, "chat.update", ts=ts, text=text, **more)

    def _show_status(self, job: Job, look: Look, memory: Memory) -> None:
        known, text = memory.value.get("status") or {}, status_of(look)
        is_old = time.time() - float(known.get("at", 0)) > STATUS_EVERY_S
        if "thread_ts" not in job.target or memory.value.get("has_no_status"):
            return
        if is_old or known.get("text") != text:
            try:
                self._set_status(job, memory, text)
            except DeliveryRefused:
                memory.keep(has_no_status=True)  # a courtesy; the reply comes all the same
            except ChannelUnavailable as error:
                # Whether it is shown is no doubt about the reply.
                raise ChannelUnavailable(error.message, retry_after_s=error.retry_after_s) from None

    def _set_status(self, job: Job, memory: Memory, text: str) -> None:
        thread = job.target["thread_ts"]
        self._call(job, "assistant.threads.setStatus", thread_ts=thread, status=text)
        memory.keep(status={"text": text, "at": time.time()} if text else None)

    def _call(self, job: Job, method: str, **arguments: Any) -> dict[str, Any]:
        return self._calls.call(method, job.target["channel"], **arguments)


def _is_drafted(memory: Memory) -> bool:
    return bool(memory.value.get("stream") or memory.value.get("draft"))


def _stream(ts: str | None, text: str) -> dict[str, object]:
    return {"ts": ts, "sent": len(text), "digest": _digest(text)}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

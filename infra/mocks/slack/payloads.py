"""What Slack sends, in its own shapes, for a made-up workspace.

Shapes: https://docs.slack.dev/apis/events-api, /interactivity/implementing-slash-commands and
/reference/interaction-payloads. Of each field that Slack sends beside those here, none is read.
"""

import secrets
import time
from dataclasses import dataclass
from itertools import count

from turnmill.infra.mocks.sending import Payload

_numbers = count(1)


def new_id(prefix: str) -> str:
    """An id as Slack makes them: a letter or two, then capitals and digits."""
    return prefix + secrets.token_hex(5).upper()


def new_ts() -> str:
    """A message's timestamp, which is its id within its channel: never twice the same."""
    return f"{time.time():.0f}.{next(_numbers) % 1_000_000:06d}"


@dataclass(frozen=True)
class Workspace:
    """A workspace with an app in it, a person, a channel and a direct message."""

    team: str = "T0TURNMILL"
    app: str = "A0TURNMILL"
    bot_user: str = "U0BOT"
    bot_id: str = "B0BOT"
    user: str = "U0ALICE"
    channel: str = "C0GENERAL"
    direct: str = "D0ALICE"

    def callback(self, event: Payload, event_id: str | None = None) -> Payload:
        """Wrap an event as the Events API does."""
        return {
            "token": "deprecated",
            "team_id": self.team,
            "context_team_id": self.team,
            "api_app_id": self.app,
            "event": {**event, "event_ts": event.get("ts") or new_ts()},
            "type": "event_callback",
            "event_id": event_id or new_id("Ev"),
            "event_time": int(time.time()),
            "authorizations": [
                {
                    "enterprise_id": None,
                    "team_id": self.team,
                    "user_id": self.bot_user,
                    "is_bot": True,
                    "is_enterprise_install": False,
                }
            ],
            "is_ext_shared_channel": False,
            "event_context": "4-mocked",
        }

    def message(self, text: str, *, channel_type: str = "channel", **fields: object) -> Payload:
        """Somebody wrote in a channel that the app is in."""
        event = {
            "type": "message",
            "user": self.user,
            "text": text,
            "ts": new_ts(),
            "client_msg_id": secrets.token_hex(16),
            "team": self.team,
            "channel": self.direct if channel_type == "im" else self.channel,
            "channel_type": channel_type,
        }
        return {**event, **fields}

    def mention(self, text: str, **fields: object) -> Payload:
        """Somebody mentioned the bot at the beginning of a message."""
        event = self.message(f"<@{self.bot_user}> {text}".strip())
        del event["channel_type"]
        return {**event, "type": "app_mention", **fields}

    def direct_message(self, text: str, **fields: object) -> Payload:
        return self.message(text, channel_type="im", **fields)

    def file(self, name: str = "photo.png", mimetype: str = "image/png") -> Payload:
        return {
            "id": new_id("F"),
            "name": name,
            "mimetype": mimetype,
            "filetype": name.rpartition(".")[2],
            "size": 12345,
            "url_private": f"https://files.slack.com/files-pri/{self.team}-F0/{name}",
        }

    def by_the_bot(self, **fields: object) -> Payload:
        """The app's own message, as it comes back."""
        mine = {"user": self.bot_user, "bot_id": self.bot_id, "app_id": self.app}
        return {**self.message("I answered."), **mine, **fields}

    def edited(self) -> Payload:
        """Slack's remark that a message was changed."""
        change = self.message("", subtype="message_changed", hidden=True)
        del change["user"], change["text"]
        return {
            **change,
            "message": self.message("now"),
            "previous_message": self.message("before"),
        }

    def reaction(self, ts: str, reaction: str = "+1", **fields: object) -> Payload:
        return {
            "type": "reaction_added",
            "user": self.user,
            "reaction": reaction,
            "item": {"type": "message", "channel": self.channel, "ts": ts},
            "item_user": self.bot_user,
            **fields,
        }

    def slash_command(self, text: str, command: str = "/ask") -> dict[str, str]:
        """The fields of the form."""
        return {
            "token": "deprecated",
            "team_id": self.team,
            "team_domain": "turnmill",
            "channel_id": self.channel,
            "channel_name": "general",
            "user_id": self.user,
            "user_name": "alice",
            "command": command,
            "text": text,
            "api_app_id": self.app,
            "is_enterprise_install": "false",
            "response_url": f"https://hooks.slack.com/commands/{self.team}/1/mocked",
            "trigger_id": f"{time.time_ns()}.1.{secrets.token_hex(8)}",
        }

    def pressed(
        self, action: Payload, *, ts: str, thread_ts: str | None = None, direct: bool = False
    ) -> Payload:
        """Somebody pressed a button of a message. The form's field `payload` has it as JSON."""
        place = {"id": self.channel, "name": "general"}
        if direct:
            place = {"id": self.direct, "name": "directmessage"}
        thread = {"thread_ts": thread_ts} if thread_ts else {}
        container = {
            "type": "message",
            "message_ts": ts,
            "channel_id": place["id"],
            "is_ephemeral": False,
        }
        return {
            "type": "block_actions",
            "user": {"id": self.user, "username": "alice", "team_id": self.team},
            "api_app_id": self.app,
            "token": "deprecated",
            "container": container | thread,
            "trigger_id": f"{time.time_ns()}.2.{secrets.token_hex(8)}",
            "team": {"id": self.team, "domain": "turnmill"},
            "channel": place,
            "message": {"type": "message", "user": self.bot_user, "ts": ts, **thread},
            "state": {"values": {}},
            "response_url": f"https://hooks.slack.com/actions/{self.team}/1/mocked",
            "actions": [{"action_ts": new_ts(), "type": "button", **action}],
        }

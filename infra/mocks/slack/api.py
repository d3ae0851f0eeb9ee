"""Slack's Web API on this machine: its rules, and its failures when they are ordered.

The judge of what we call is `slack_sdk`, whose client talks to this server as to Slack. Response
URLs of slash commands are served too: five uses within thirty minutes.
"""

import time
from collections import Counter
from collections.abc import Callable

from turnmill.infra.mocks.sending import Payload
from turnmill.infra.mocks.serving import Call, MockAPI, Reply
from turnmill.infra.mocks.slack.limits import Limits
from turnmill.infra.mocks.slack.messages import Board, Posted
from turnmill.infra.mocks.slack.methods import Methods, Refusal
from turnmill.infra.mocks.slack.payloads import new_id, new_ts

SCOPES = (
    "app_mentions:read,assistant:write,channels:history,chat:write,commands,files:read,groups:history,"
    "im:history,im:read,im:write,reactions:read"
)
TOKEN = "xoxb-mock-token"  # noqa: S105 - of this mock only

#: Of a response URL: https://docs.slack.dev/interactivity/handling-user-interaction
MAX_USES, USABLE_S = 5, 30 * 60.0


#: What calls of response URLs are named.
RESPONSE = "response_url"


class SlackAPI(MockAPI):
    """The Web API of one workspace. An order may be an error of Slack's, too."""

    def __init__(self, board: Board | None = None, *, limited: bool = True) -> None:
        super().__init__()
        self.board = board or Board()
        self.methods = Methods(self.board)
        self.limits = Limits(limited)
        self.tokens = {TOKEN}
        self.scopes = SCOPES
        #: Why a token is not taken: `token_revoked`, `account_inactive`, ...
        self.token_error: str | None = None
        #: What people uploaded, by name; only whoever has the token is given it.
        self.files: dict[str, bytes] = {}
        #: Files of the app, by id: their length, and their bytes once they are there.
        self.uploads: dict[str, tuple[int, bytes]] = {}
        #: Those that people see: channel, thread and bytes.
        self.shared: list[tuple[str, str | None, bytes]] = []
        #: Told of every change that people would see.
        self.on_change: Callable[[], None] = lambda: None
        self._response_urls: dict[str, tuple[str, float]] = {}
        self._uses: Counter[str] = Counter()

    @property
    def url(self) -> str:
        """What `slack_sdk` calls `base_url`."""
        return f"{super().url}/api/"

    @property
    def texts(self) -> list[str]:
        """What people read of the app's messages."""
        return [message.shown for message in self.board.messages if message.user is None]

    def file_url(self, name: str) -> str:
        """Where an uploaded file is, as its `url_private_download`."""
        return f"{super().url}/files-pri/{name}"

    def response_url(self, channel: str) -> str:
        """A response URL, as a slash command brings it."""
        name = new_id("R")
        self._response_urls[name] = (channel, time.monotonic())
        return f"{super().url}/response/{name}"

    def name(self, call: Call) -> str:
        kind, _, name = call.path.lstrip("/").partition("/")
        return {"response": RESPONSE, "upload": "upload"}.get(kind, name)

    def limited(self, retry_after_s: float) -> Reply:
        data = {"ok": False, "error": "ratelimited"}
        return Reply(429, data, {"Retry-After": str(int(retry_after_s))})

    def refused(self, error: str) -> Reply:
        return Reply(200, {"ok": False, "error": error}, {"x-oauth-scopes": self.scopes})

    def answer(self, call: Call) -> Reply:
        name, given = self.name(call), call.given | call.query
        if call.path.startswith("/files-pri/"):
            found = self.files.get(name) if _bearer(call) in self.tokens else None
            # Slack shows a page to log in at, with status 200.
            return Reply(200, found or b"<!DOCTYPE html><title>Slack</title>")
        if name == "upload":
            return self._upload(call)
        if name == RESPONSE:
            return self._respond(call.path.rpartition("/")[2], given)
        token = str(given.pop("token", "")) or _bearer(call)
        channel = str(given.get("channel") or given.get("channel_id") or "")
        try:
            self._check_token(token)
            if (wait_s := self.limits.retry_after_s(name, channel)) is not None:
                return self.limited(wait_s)
            uploading = {
                "files.getUploadURLExternal": self._upload_url,
                "files.completeUploadExternal": self._share,
            }
            known = (self.methods.by_name | uploading).get(name)
            if known is None:
                raise Refusal("unknown_method")
            body = {"ok": True, **known(given)}
        except Refusal as refusal:
            return self.refused(str(refusal))
        self.on_change()
        return Reply(200, body, {"x-oauth-scopes": self.scopes})

    def _upload_url(self, given: Payload) -> dict[str, object]:
        """https://docs.slack.dev/reference/methods/files.getUploadURLExternal"""
        if "files:write" not in self.scopes.split(","):
            raise Refusal("missing_scope")
        if not given.get("filename") or int(given.get("length") or 0) <= 0:
            raise Refusal("invalid_arguments")
        file_id = new_id("F")
        self.uploads[file_id] = int(given["length"]), b""
        return {"upload_url": f"{super().url}/upload/v1/{file_id}", "file_id": file_id}

    def _upload(self, call: Call) -> Reply:
        file_id = call.path.rpartition("/")[2]
        length, _ = self.uploads.get(file_id, (-1, b""))
        # A token there is a token too many.
        if length != len(call.body) or _bearer(call):
            return Reply(400)
        self.uploads[file_id] = length, call.body
        return Reply(200, b"OK")

    def _share(self, given: Payload) -> dict[str, object]:
        """https://docs.slack.dev/reference/methods/files.completeUploadExternal"""
        for file in given["files"]:
            length, data = self.uploads.get(file["id"], (0, b""))
            if not data or length != len(data):
                raise Refusal("file_not_found")
            self.shared.append((given["channel_id"], given.get("thread_ts"), data))
        return {"files": given["files"]}

    def _respond(self, name: str, given: Payload) -> Reply:
        """Take a message for a response URL."""
        channel, since = self._response_urls.get(name, ("", float("-inf")))
        if time.monotonic() - since > USABLE_S:
            return Reply(404, {"ok": False, "error": "expired_url"})
        self._uses[name] += 1
        if self._uses[name] > MAX_USES:
            return Reply(404, {"ok": False, "error": "used_url"})
        blocks = given.get("blocks") or []
        self.board.add(Posted(channel, new_ts(), str(given.get("text", "")), blocks=blocks))
        self.on_change()
        return Reply(200, {"ok": True})

    def _check_token(self, token: str) -> None:
        if not token:
            raise Refusal("not_authed")
        if token not in self.tokens:
            raise Refusal("invalid_auth")
        if self.token_error is not None:
            raise Refusal(self.token_error)


def _bearer(call: Call) -> str:
    return call.headers.get("authorization", "").removeprefix("Bearer ").strip()

"""Bring replies to Discord: in the place of "thinking…", and by the bot after fifteen minutes.

An interaction's token is good for fifteen minutes. Within them the reply edits the interaction's
own answer, which can be repeated, and further parts follow it; later, or when Discord ended the
token before (our answer came after three seconds), the bot writes into the channel, with a nonce
that Discord takes once within some minutes:
https://discord.com/developers/docs/interactions/receiving-and-responding#followup-messages and
https://discord.com/developers/docs/resources/message#create-message
"""

import time
from contextlib import suppress
from dataclasses import replace

from turnmill.schemas.channels.buttons import Button
from turnmill.schemas.channels.deliveries import DeliveryKind
from turnmill.schemas.channels.discord import USER_AGENT
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.discord import DiscordSection
from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import MAX_PAUSE_S, MIN_PAUSE_S, Job, Memory, pause_s
from turnmill.workers.delivery.calls.downloads import download, host_of, refuse_foreign
from turnmill.workers.delivery.calls.rest import Reply, call
from turnmill.workers.delivery.parts import PartsDelivery
from turnmill.workers.delivery.texts.dialects import Dialect, translate

#: Characters of a message.
MAX_TEXT = 2000
#: A webhook takes five calls in two seconds.
WRITE_EVERY_S = 1.5

#: Where attachments are.
_CDN_HOSTS = ("cdn.discordapp.com", "media.discordapp.net")
#: The token is used no more so long before it ends, seconds: our clock may be another.
_MARGIN_S = 30.0
_RETRY_AFTER_S = 5.0
#: No previews of links.
_SUPPRESS_EMBEDS = 1 << 2
#: Somebody deleted the message.
_MESSAGE_GONE = 10008
#: How long a token is good, and how long the answer to its interaction may be under way, seconds.
_TOKEN_S, _YOUNG_S = 15 * 60.0, 5.0
#: In the target of a job whose text is not complete.
_DRAFTING = "drafting"
#: The token has ended, or is not good yet: https://docs.discord.com/developers/topics/opcodes-and-status-codes#json
_UNKNOWN_WEBHOOK = 10015
_TOKEN_GONE = frozenset({_UNKNOWN_WEBHOOK, 50027})
_GONE = "gone"
#: What the limit of the whole bot is kept under. Calls by an interaction's token are not bound to
#: it: https://docs.discord.com/developers/interactions/receiving-and-responding#endpoints
_BOT = "bot"

_ADVICE = {
    10003: "The channel is gone. Drop the delivery.",
    50001: "Invite the bot to the server, with the scope bot.",
    50007: "The person takes no direct messages from the bot. Drop the delivery.",
    50013: "Give the bot the permission Send Messages in the channel.",
    50083: "The thread is archived. Open it, or drop the delivery.",
}


def to_discord(text: str) -> str:
    """Translate a whole message: https://discord.com/developers/docs/reference#message-formatting"""
    return translate(text, _DIALECT)


class DiscordDelivery(PartsDelivery):
    """One application's way out."""

    limit = MAX_TEXT
    typing_every_s = 30.0
    place = "channel"
    deleted = _GONE

    def __init__(self, name: str, section: ChannelSection, settings: DeliverySettings) -> None:
        assert isinstance(section, DiscordSection)
        super().__init__()
        self._url = section.api_url.rstrip("/")
        self._application = section.application_id
        self._bot = f"Bot {section.bot_token.read().get_secret_value()}"
        self._timeout_s = settings.timeout_s
        self.shows_progress = section.streams

    def measure(self, text: str) -> int:
        return len(to_discord(text).encode("utf-16-le")) // 2

    def write_every_s(self, job: Job) -> float | None:
        return WRITE_EVERY_S if _is_live(job) else None

    def write(self, job: Job, part: str, memory: Memory) -> None:
        """By the token alone: what the bot posts cannot be changed afterwards."""
        drafting = replace(job, target=job.target | {_DRAFTING: "yes"})
        with suppress(_Gone):
            super().write(drafting, part, memory)

    def bring(self, job: Job, memory: Memory) -> bool:
        if job.text is None and "draft" not in memory.value and _is_live(job):
            # Nobody wants the reply: nothing will take the place of "thinking…".
            with suppress(_Gone):
                self._by_token(job, "DELETE", "/messages/@original")
            return False
        return super().bring(job, memory)

    def post(self, job: Job, number: int, part: str, buttons: tuple[Button, ...]) -> str:
        given = _message(part, buttons)
        ways = [("POST", "")]
        if number == 0 and job.kind is DeliveryKind.REPLY:
            ways.insert(0, ("PATCH", "/messages/@original"))
        for method, path in ways:
            if _is_live(job):
                with suppress(_Gone):
                    return _id(self._by_token(job, method, path, given))
        if _DRAFTING in job.target:
            raise _Gone
        nonce = f"{job.delivery_id.hex[-20:]}-{number}"
        return _id(self._by_bot(job, given | {"nonce": nonce, "enforce_nonce": True}))

    def edit(self, job: Job, message: str, part: str, buttons: tuple[Button, ...]) -> None:
        if not _is_live(job):
            raise _Gone
        self._by_token(job, "PATCH", f"/messages/{message}", _message(part, buttons))

    def show_typing(self, job: Job) -> None:
        """ "thinking…" stands there until the reply does."""

    def _by_token(
        self, job: Job, method: str, path: str, given: object = None
    ) -> dict[str, object]:
        """Call by the interaction's token. Raises `_Gone`: the message is gone, or the token."""
        token = job.target["token"]
        try:
            return self._call(token, method, f"webhooks/{self._application}/{token}{path}", given)
        except _Gone as error:
            if error.number == _UNKNOWN_WEBHOOK and _is_young(job):
                # Its answer, which makes the token good, may be on its way still.
                raise ChannelUnavailable(
                    "Discord does not know the interaction yet.", retry_after_s=MIN_PAUSE_S
                ) from None
            if error.number in _TOKEN_GONE:
                # Discord restricts who calls again: this attempt does not.
                job.target["expires_at"] = "0"
            raise

    def fetch(self, ref: str, max_bytes: int) -> bytes:
        """Fetch an attachment by its signed address, which needs no token and gets none."""
        refuse_foreign(ref, *_CDN_HOSTS, host_of(self._url))
        return download("Discord", ref, {"User-Agent": USER_AGENT}, self._timeout_s, max_bytes)

    def _by_bot(self, job: Job, given: dict[str, object]) -> dict[str, object]:
        self.refuse_paused(_BOT)
        channel = job.target["channel"]
        return self._call(channel, "POST", f"channels/{channel}/messages", given, self._bot)

    def _call(
        self, bucket: str, method: str, path: str, given: object, authorization: str | None = None
    ) -> dict[str, object]:
        """Call, unless the last answer of the bucket said that nothing is left in it."""
        self.refuse_paused(bucket)
        headers = {"User-Agent": USER_AGENT}
        if authorization is not None:
            headers["Authorization"] = authorization
        reply = call("Discord", method, f"{self._url}/{path}", given, headers, self._timeout_s)
        if (reset_s := _until_reset(reply)) is not None:
            self.pause(bucket, reset_s)
        if not reply.is_good:
            error = _error(reply)
            if isinstance(error, ChannelUnavailable) and reply.data.get("global") is True:
                self.pause(_BOT, error.retry_after_s or _RETRY_AFTER_S)
            raise error
        return reply.data


class _Gone(DeliveryRefused):
    """The message is gone, or the interaction's token."""

    def __init__(self, number: int = _MESSAGE_GONE) -> None:
        super().__init__("The message is gone.", reason=_GONE)
        self.number = number


def _is_young(job: Job) -> bool:
    """Whether the interaction came a moment ago."""
    return time.time() < float(job.target.get("expires_at", 0)) - _TOKEN_S + _YOUNG_S


def _is_live(job: Job) -> bool:
    """Whether the interaction's token is still good."""
    return time.time() < float(job.target.get("expires_at", 0)) - _MARGIN_S


def _id(message: dict[str, object]) -> str:
    return str(message.get("id", ""))


def _until_reset(reply: Reply) -> float | None:
    """Seconds until a bucket that is empty is filled again; None: something is left in it.

    https://docs.discord.com/developers/topics/rate-limits#header-format
    """
    if reply.headers.get("x-ratelimit-remaining") != "0":
        return None
    try:
        return min(max(float(reply.headers.get("x-ratelimit-reset-after", "")), 0.0), MAX_PAUSE_S)
    except ValueError:
        return None


def _message(part: str, buttons: tuple[Button, ...]) -> dict[str, object]:
    return {
        "content": to_discord(part),
        "allowed_mentions": {"parse": []},
        "flags": _SUPPRESS_EMBEDS,
        "components": _row(buttons),
    }


def _row(buttons: tuple[Button, ...]) -> list[dict[str, object]]:
    grey = [{"type": 2, "style": 2, "label": b.label, "custom_id": b.value} for b in buttons]
    return [{"type": 1, "components": grey}] if grey else []


def _error(reply: Reply) -> ChannelUnavailable | DeliveryRefused:
    """https://discord.com/developers/docs/topics/opcodes-and-status-codes#json"""
    code = reply.data.get("code")
    if reply.status == 429:
        asked = reply.data.get("retry_after")
        after_s = pause_s(float(asked)) if isinstance(asked, int | float) else None
        return ChannelUnavailable(
            "Discord's limit of calls",
            retry_after_s=after_s or reply.retry_after_s or _RETRY_AFTER_S,
        )
    if reply.status == 401 and code != 50027:
        advice = "Copy the bot token again from the page Bot of the application."
        return DeliveryRefused(f"Discord refused the bot token. {advice}", reason="http_401")
    if code == _MESSAGE_GONE or code in _TOKEN_GONE:
        return _Gone(number=int(code or 0))
    advice = _ADVICE.get(code, "See Discord's JSON error codes.") if isinstance(code, int) else ""
    return DeliveryRefused(
        f"Discord refused the message: {code or reply.status}. {advice}",
        reason=str(code or f"http_{reply.status}"),
    )


_DIALECT = Dialect(
    escape=lambda text: text,
    bold=("**", "**"),
    italic=("*", "*"),
    struck=("~~", "~~"),
    code=("`", "`"),
    quote=("> ", ""),
    link=lambda label, url: f"[{label}]({url})" if label and label != url else url,
    fence=lambda language: f"```{language}",
    fence_end="```",
)

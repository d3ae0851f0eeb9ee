"""Ask Telegram whether a channel's token is good and where updates go, or tell it where."""

from collections.abc import Iterator
from typing import Any

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, note, ok, warning
from turnmill.schemas.channels.sections.telegram import TelegramSection

#: https://core.telegram.org/bots/api#update: others would only cost requests.
UPDATES = ["message", "edited_message", "callback_query"]

_COMMANDS = [
    {"command": "stop", "description": "End the current reply"},
    {"command": "reset", "description": "Start a new conversation"},
    {"command": "human", "description": "Talk to a person"},
    {"command": "help", "description": "What I can do"},
]


class _Refused(Exception):
    """Telegram's own word."""


def check_telegram(section: TelegramSection) -> Iterator[Finding]:
    """Call `getMe` and `getWebhookInfo`. Raises `SettingsError`: a secret is missing."""
    try:
        yield from _bot(section, _call(section, "getMe"))
        yield from _webhook(_call(section, "getWebhookInfo"))
    except _Refused as error:
        yield broken(str(error), "Copy the token again from @BotFather.")


def register_telegram(section: TelegramSection, address: str) -> Iterator[Finding]:
    """Tell Telegram the address of updates and the secret, and offer the commands in its menu."""
    secret = section.secret_token.read().get_secret_value()
    fields = {"url": address, "secret_token": secret, "allowed_updates": UPDATES}
    try:
        _call(section, "setWebhook", **fields)
        _call(section, "setMyCommands", commands=_COMMANDS)
    except _Refused as error:
        yield broken(str(error), "The address must begin with https:// and be reachable.")
    else:
        yield ok(f"registered: updates are sent to {address}")


def _call(section: TelegramSection, method: str, **fields: object) -> Any:
    token = section.bot_token.read().get_secret_value()
    url = f"{section.api_url.rstrip('/')}/bot{token}/{method}"
    try:
        status, answer = ask(url, fields)
    except Unanswered as error:
        raise _Refused(f"{method}: {error}") from None
    if not isinstance(answer, dict) or not answer.get("ok"):
        said = answer.get("description") if isinstance(answer, dict) else None
        raise _Refused(f"{method}: {said or status}")
    return answer.get("result")


def _bot(section: TelegramSection, me: dict[str, object]) -> Iterator[Finding]:
    username = str(me.get("username", ""))
    yield ok(f"the bot is @{username}")
    given = (section.username or "").removeprefix("@")
    if not given:
        fix = f'To answer mentions in groups, set username = "{username}".'
        yield note("username is not set", fix)
    elif given.lower() != username.lower():
        yield broken(f"username is {given}, the bot is {username}", "Correct turnmill.toml.")
    if not me.get("can_join_groups", True):
        yield note("the bot cannot be added to groups", "@BotFather: /setjoingroups")


def _webhook(info: dict[str, object]) -> Iterator[Finding]:
    if not info.get("url"):
        yield broken(
            "no address is registered", "turnmill channels check NAME --url URL --register"
        )
        return
    yield ok(f"updates are sent to {info['url']}, {info.get('pending_update_count', 0)} wait")
    if message := info.get("last_error_message"):
        yield warning(f"Telegram's last try failed: {message}", "Is the API reachable there?")
    allowed = info.get("allowed_updates")
    if not isinstance(allowed, list) or not allowed:
        return
    if missing := [name for name in UPDATES if name not in allowed]:
        yield warning(f"not sent: {', '.join(missing)}", "Register the address again.")

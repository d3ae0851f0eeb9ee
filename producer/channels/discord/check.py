"""Ask Discord whether a channel's application is good, or tell it the commands and the address."""

from collections.abc import Iterator
from typing import Any

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.channels.discord.payloads import CommandType
from turnmill.producer.doctor.findings import Finding, broken, ok, warning
from turnmill.schemas.channels.discord import USER_AGENT
from turnmill.schemas.channels.sections.discord import DiscordSection

_TEXT_OPTION, _ATTACHMENT_OPTION = 3, 11
_REGISTER = "turnmill channels check NAME --url URL --register"

_COMMANDS: list[dict[str, object]] = [
    {
        "name": "ask",
        "description": "Ask me something",
        "options": [
            {
                "type": _TEXT_OPTION,
                "name": "text",
                "description": "Your question",
                "required": True,
            },
            {
                "type": _ATTACHMENT_OPTION,
                "name": "file",
                "description": "A picture or a voice message",
            },
        ],
    },
    {"name": "stop", "description": "End the current reply"},
    {"name": "reset", "description": "Start a new conversation"},
    {"name": "human", "description": "Talk to a person"},
    {"name": "resume", "description": "Give the conversation back to the bot"},
    {"name": "Ask", "type": int(CommandType.MESSAGE)},
]


class _Refused(Exception):
    """Discord's own word."""


def check_discord(section: DiscordSection) -> Iterator[Finding]:
    """Ask for the application. Raises `SettingsError`: a secret is missing."""
    try:
        application = _call(section, "GET", "applications/@me")
    except _Refused as error:
        yield broken(str(error), "Copy the bot token again from the page Bot.")
        return
    name, number = application.get("name", ""), str(application.get("id", ""))
    if number != section.application_id:
        yield broken(f"application_id is not that of {name}", f'Set application_id = "{number}".')
        return
    yield ok(f"the application is {name}")
    if str(application.get("verify_key", "")).lower() != section.public_key.lower():
        yield broken("public_key is another one", "Copy it from General Information.")
    if url := application.get("interactions_endpoint_url"):
        yield ok(f"interactions are sent to {url}")
    else:
        yield warning("no address is registered", _REGISTER)
    yield _commands(section)


def _commands(section: DiscordSection) -> Finding:
    try:
        known = {(each["name"], each["type"]) for each in _call(section, "GET", _path(section))}
    except _Refused as error:
        return broken(str(error), "Invite the application to the server of guild_id.")
    wanted = [(str(each["name"]), each.get("type", CommandType.WRITTEN)) for each in _COMMANDS]
    if missing := [name for name, kind in wanted if (name, kind) not in known]:
        return warning(f"commands that are not registered: {', '.join(missing)}", _REGISTER)
    return ok(f"{len(wanted)} commands are registered")


def _path(section: DiscordSection) -> str:
    """Where an application's commands are, those of one server or those of all."""
    guild = "" if section.guild_id is None else f"guilds/{section.guild_id}/"
    return f"applications/{section.application_id}/{guild}commands"


def register_discord(section: DiscordSection, address: str) -> Iterator[Finding]:
    """Tell Discord the commands, and the address of interactions, which it tries at once."""
    try:
        _call(section, "PUT", _path(section), _COMMANDS)
        yield ok(f"{len(_COMMANDS)} commands are registered")
        _call(section, "PATCH", "applications/@me", {"interactions_endpoint_url": address})
    except _Refused as error:
        yield broken(str(error), "The address must begin with https:// and answer Discord now.")
    else:
        yield ok(f"registered: interactions are sent to {address}")


def _call(section: DiscordSection, method: str, path: str, given: object = None) -> Any:
    token = section.bot_token.read().get_secret_value()
    url = f"{section.api_url.rstrip('/')}/{path}"
    headers = {"Authorization": f"Bot {token}", "User-Agent": USER_AGENT}
    try:
        status, answer = ask(url, given, headers, method=method)
    except Unanswered as error:
        raise _Refused(f"{section.api_url} does not answer: {error}") from None
    if not 200 <= status < 300:
        said = answer.get("message") if isinstance(answer, dict) else None
        raise _Refused(f"{path}: {said or status}")
    return answer

"""Ask Feishu whether a channel's app is good."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, note, ok, warning
from turnmill.schemas.channels.sections.feishu import FeishuSection


class _Need(NamedTuple):
    """Something that takes one of several scopes, the narrowest first."""

    scopes: tuple[str, ...]
    #: What fails without any of them.
    lost: str
    level: Callable[[str, str], Finding] = warning


#: What each call and event wants, by its page of Feishu's reference: reply to a message, receive a
#: message, get the resource files of a message.
_NEEDS = (
    _Need(("im:message:send_as_bot", "im:message", "im:message:send"), "no reply is sent", broken),
    _Need(("im:message.p2p_msg:readonly", "im:message.p2p_msg"), "direct messages do not arrive"),
    _Need(
        ("im:message.group_at_msg:readonly", "im:message.group_at_msg", "im:message.group_msg"),
        "messages of groups do not arrive",
    ),
    _Need(
        ("im:message:readonly", "im:message", "im:message.history:readonly"),
        "pictures and sounds that people send are not fetched",
    ),
)
_GRANTED = 1

_SECRETS = "Compare app_id and the app secret with Credentials & Basic Info of the app."


def check_feishu(section: FeishuSection) -> Iterator[Finding]:
    """Fetch a token, and ask for the bot and for the app's scopes.

    Raises `SettingsError`: a secret is missing.
    """
    url = f"{section.api_url.rstrip('/')}/open-apis"
    app = {"app_id": section.app_id, "app_secret": section.app_secret.read().get_secret_value()}
    try:
        _, token = ask(f"{url}/auth/v3/tenant_access_token/internal", app)
        if token.get("code") != 0:
            yield broken(f"tenant_access_token: {token.get('code')}", _SECRETS)
            return
        yield ok(f"the app is {section.app_id}")
        headers = {"Authorization": f"Bearer {token['tenant_access_token']}"}
        _, answer = ask(f"{url}/bot/v3/info", headers=headers)
        yield _bot(section, answer)
        # https://open.feishu.cn/document/uAjLw4CM/ukTMukTMukTM/application-v6/scope/list
        _, answer = ask(f"{url}/application/v6/scopes", headers=headers)
        yield from _scopes(section, answer)
    except Unanswered as error:
        yield broken(f"{section.api_url} does not answer: {error}", "Check api_url.")


def _bot(section: FeishuSection, answer: dict[str, object]) -> Finding:
    bot = answer.get("bot")
    if answer.get("code") != 0 or not isinstance(bot, dict):
        fix = "Add the feature Bot to the app, and publish a new version."
        return broken(f"bot/v3/info: {answer.get('code')}", fix)
    open_id, name = bot.get("open_id", ""), bot.get("app_name", "")
    if section.open_id is None:
        fix = f'To tell its mentions from others, set open_id = "{open_id}".'
        return note(f"the bot is {name}; open_id is not set", fix)
    if section.open_id != open_id:
        return broken(f"open_id is {section.open_id}, the bot's is {open_id}", "Correct it.")
    return ok(f"the bot is {name} ({open_id})")


def _scopes(section: FeishuSection, answer: dict[str, object]) -> Iterator[Finding]:
    """What the tenant has granted to the app, and what fails without the others."""
    granted = _granted(answer)
    if granted is None:
        fix = "Publish a version of the app, and compare its scopes with docs/channels/feishu.md."
        yield note(
            f"the app's scopes are not known: application/v6/scopes: {answer.get('code')}", fix
        )
        return
    lacking = [need for need in _NEEDS if not granted.intersection(need.scopes)]
    for need in lacking:
        scope = need.scopes[0]
        page = f"{section.api_url.rstrip('/')}/app/{section.app_id}/auth?q={scope}"
        fix = f"Add {scope} under Permissions & Scopes, and publish a new version: {page}"
        yield need.level(f"without the scope {scope} {need.lost}", fix)
    if not lacking:
        yield ok("the app has the scopes that replies, messages and media need")


def _granted(answer: dict[str, object]) -> set[str] | None:
    """The names of the scopes in force that the app has itself, and not only for a user who signs
    in; None: the answer holds none that can be read.
    """
    data = answer.get("data")
    scopes = data.get("scopes") if isinstance(data, dict) else None
    if answer.get("code") != 0 or not isinstance(scopes, list):
        return None
    rows = [row for row in scopes if isinstance(row, dict) and row.get("scope_type") != "user"]
    return {str(row.get("scope_name")) for row in rows if row.get("grant_status") == _GRANTED}

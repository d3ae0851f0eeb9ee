"""Ask Slack whether a channel's tokens are good."""

from collections.abc import Iterator

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web import SlackResponse

from turnmill.producer.channels.slack.scopes import BOT_SCOPES, VOICE_SCOPE
from turnmill.producer.doctor.findings import Finding, broken, note, ok, warning
from turnmill.schemas.channels.policies import Policies, VoiceReplies
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection

TIMEOUT_S = 10

_TOKENS = (
    "Copy the token again: https://api.slack.com/apps, OAuth & Permissions for xoxb-…, "
    "Basic Information for xapp-…"
)
_ADD_SCOPES = (
    "Add what is missing under OAuth & Permissions, then reinstall the app and copy the new token."
)


def check_slack(section: SlackSection) -> Iterator[Finding]:
    """Call `auth.test` with the bot's token, and open a connection with the app's, if there is one.

    Raises:
        SettingsError: a token is missing.
    """
    token = section.bot_token.read().get_secret_value()
    client = WebClient(token, base_url=section.api_url, timeout=TIMEOUT_S)
    try:
        answer = client.auth_test()
    except (SlackApiError, SlackClientError, OSError) as error:
        yield broken(f"auth.test: {_reason(error)}", _TOKENS)
        return
    yield ok(f"the bot is @{answer['user']} ({answer['user_id']}) in {answer['team']}")
    yield _scopes(_scopes_of(answer))
    if section.app_token is not None:
        yield _socket_mode(client, section.app_token)


def check_policies(section: SlackSection, policies: Policies) -> Iterator[Finding]:
    """Look whether the bot's token has what the bot's policies need; `check_slack` comes first.

    Raises:
        SettingsError: the token is missing.
    """
    if policies.voice_replies is VoiceReplies.OFF:
        return
    token = section.bot_token.read().get_secret_value()
    try:
        has = _scopes_of(WebClient(token, base_url=section.api_url, timeout=TIMEOUT_S).auth_test())
    except (SlackApiError, SlackClientError, OSError):
        return  # `check_slack` has told.
    if VOICE_SCOPE not in has:
        yield warning(
            f"the bot answers voice by voice, and its token lacks the scope for it: {VOICE_SCOPE}. "
            "Its replies are sent as text alone",
            _ADD_SCOPES,
        )


def _scopes_of(answer: SlackResponse) -> set[str]:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return {scope.strip() for scope in headers.get("x-oauth-scopes", "").split(",")}


def _scopes(has: set[str]) -> Finding:
    if missing := [scope for scope in BOT_SCOPES if scope not in has]:
        wanted = ", ".join(f"{scope} ({BOT_SCOPES[scope]})" for scope in missing)
        return broken(
            f"the bot's token lacks scopes: {wanted}",
            _ADD_SCOPES,
        )
    return ok(f"the bot's token has all {len(BOT_SCOPES)} scopes")


def _socket_mode(client: WebClient, reference: SecretReference) -> Finding:
    try:
        client.apps_connections_open(app_token=reference.read().get_secret_value())
    except (SlackApiError, SlackClientError, OSError) as error:
        fix = "Turn Socket Mode on, and make an app-level token with connections:write."
        return broken(f"apps.connections.open: {_reason(error)}", fix)
    return note("socket mode is on: events come by 'turnmill socket NAME', not by HTTP")


def _reason(error: Exception) -> str:
    """Slack's own word (`invalid_auth`), or the kind of the failure."""
    if isinstance(error, SlackApiError):
        return str(error.response["error"])
    return type(error).__name__

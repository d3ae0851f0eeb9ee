"""Ask Slack whether a channel's tokens are good."""

from collections.abc import Iterator

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

from turnmill.producer.channels.slack.scopes import BOT_SCOPES
from turnmill.producer.doctor.findings import Finding, broken, note, ok
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.slack import SlackSection

TIMEOUT_S = 10

_TOKENS = (
    "Copy the token again: https://api.slack.com/apps, OAuth & Permissions for xoxb-…, "
    "Basic Information for xapp-…"
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
    headers = {name.lower(): value for name, value in answer.headers.items()}
    yield _scopes(headers.get("x-oauth-scopes", ""))
    if section.app_token is not None:
        yield _socket_mode(client, section.app_token)


def _scopes(header: str) -> Finding:
    has = {scope.strip() for scope in header.split(",")}
    if missing := [scope for scope in BOT_SCOPES if scope not in has]:
        wanted = ", ".join(f"{scope} ({BOT_SCOPES[scope]})" for scope in missing)
        return broken(
            f"the bot's token lacks scopes: {wanted}",
            "Add them under OAuth & Permissions, then reinstall the app and copy the new token.",
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

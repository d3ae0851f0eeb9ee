"""Ask Microsoft whether a Teams channel's app is good."""

from collections.abc import Iterator
from urllib.parse import urlencode

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.channels.base import FORM
from turnmill.producer.channels.teams.keys import read_keys
from turnmill.producer.doctor.findings import Finding, broken, ok
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import CHANNEL, SCOPE, Services

_SECRETS = (
    "Compare app_id, the client secret (its Value, not its ID; has it expired?) and tenant_id "
    "with the app registration of the Azure Bot."
)


def check_teams(section: TeamsSection) -> Iterator[Finding]:
    """Fetch a token, and the keys that activities are verified with.

    Raises `SettingsError`: a secret is missing.
    """
    services = Services.of(section)
    yield _token(section, services)
    yield _keys(services)


def _token(section: TeamsSection, services: Services) -> Finding:
    given = {
        "grant_type": "client_credentials",
        "client_id": section.app_id,
        "client_secret": section.app_secret.read().get_secret_value(),
        "scope": SCOPE,
    }
    body = urlencode(given).encode()
    try:
        status, answer = ask(services.token_url, body, {"Content-Type": FORM})
    except Unanswered as error:
        return broken(f"{services.token_url} does not answer: {error}", "Check the network.")
    if not isinstance(answer, dict) or not answer.get("access_token"):
        said = answer.get("error") if isinstance(answer, dict) else None
        return broken(f"token: {said or status}", _SECRETS)
    return ok(f"the app is {section.app_id}")


def _keys(services: Services) -> Finding:
    try:
        keys = read_keys(services.openid_url)
    except Unanswered as error:
        fix = "The API must reach it, or it can verify nothing that Teams sends."
        return broken(f"{services.openid_url} does not answer: {error}", fix)
    good = sum(CHANNEL in key.endorsements for key in keys.values())
    if not good:
        return broken("no signing key is endorsed for msteams", "Is api_url right?")
    return ok(f"{good} signing keys")

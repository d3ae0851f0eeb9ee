"""Ask Feishu whether a channel's app is good."""

from collections.abc import Iterator

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, note, ok
from turnmill.schemas.channels.sections.feishu import FeishuSection

_SECRETS = "Compare app_id and the app secret with Credentials & Basic Info of the app."


def check_feishu(section: FeishuSection) -> Iterator[Finding]:
    """Fetch a token, and ask for the bot. Raises `SettingsError`: a secret is missing."""
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

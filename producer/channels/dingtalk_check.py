"""Ask DingTalk whether a channel's app is good."""

from collections.abc import Iterator

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, ok
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection

_SECRETS = "Compare client_id and the Client Secret with Credentials and Basic Information."


def check_dingtalk(section: DingTalkSection) -> Iterator[Finding]:
    """Fetch a token. Raises `SettingsError`: a secret is missing."""
    secret = section.client_secret.read().get_secret_value()
    url = f"{section.api_url.rstrip('/')}/v1.0/oauth2/accessToken"
    try:
        status, answer = ask(url, {"appKey": section.client_id, "appSecret": secret})
    except Unanswered as error:
        yield broken(f"{section.api_url} does not answer: {error}", "Check api_url.")
        return
    if not answer.get("accessToken"):
        yield broken(f"accessToken: {answer.get('code', status)}", _SECRETS)
        return
    yield ok(f"the app is {section.client_id}")

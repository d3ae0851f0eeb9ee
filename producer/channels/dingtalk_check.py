"""Ask DingTalk whether a channel's app is good."""

from collections.abc import Iterator

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, ok, warning
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection

_SECRETS = "Compare client_id and the Client Secret with Credentials and Basic Information."

_PERMISSION = "Give the app the permission qyapi_robot_sendmsg, and publish a new version."


def check_dingtalk(section: DingTalkSection) -> Iterator[Finding]:
    """Fetch a token, and ask for a file that is not there, which tells what the app lacks.

    Raises `SettingsError`: a secret is missing.
    """
    secret = section.client_secret.read().get_secret_value()
    url = f"{section.api_url.rstrip('/')}/v1.0"
    try:
        status, answer = ask(
            f"{url}/oauth2/accessToken", {"appKey": section.client_id, "appSecret": secret}
        )
        token = answer.get("accessToken")
        refused = _refused(url, section, str(token)) if token else ""
    except Unanswered as error:
        yield broken(f"{section.api_url} does not answer: {error}", "Check api_url.")
        return
    if not token:
        yield broken(f"accessToken: {answer.get('code', status)}", _SECRETS)
        return
    yield ok(f"the app is {section.client_id}")
    if refused.endswith("AccessTokenPermissionDenied"):
        lost = "pictures and sounds that people send are not fetched, and late replies not sent"
        yield warning(f"without qyapi_robot_sendmsg {lost}", _PERMISSION)


def _refused(url: str, section: DingTalkSection, token: str) -> str:
    """DingTalk's code for a file that is not there. Raises `Unanswered`."""
    given = {"downloadCode": "none", "robotCode": section.robot_code or section.client_id}
    headers = {"x-acs-dingtalk-access-token": token}
    _, answer = ask(f"{url}/robot/messageFiles/download", given, headers)
    return str(answer.get("code", ""))

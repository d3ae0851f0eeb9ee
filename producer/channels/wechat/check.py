"""Ask WeChat whether a channel's account is good, and may send customer-service messages."""

from collections.abc import Iterator
from urllib.parse import urlencode

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, ok
from turnmill.schemas.channels.sections.wechat import WeChatSection

_FIXES: dict[object, str] = {
    40001: "Compare the AppSecret with the account's page.",
    40013: "Compare app_id with the account's page.",
    40125: "Compare the AppSecret with the account's page.",
    40164: "Add this host's address to the account's IP whitelist.",
    48001: "The account may not send customer-service messages. Get it verified (微信认证), or try "
    "with a test account.",
}


def check_wechat(section: WeChatSection) -> Iterator[Finding]:
    """Fetch a token, and use a call that only accounts with customer service may use.

    Raises:
        SettingsError: a secret is missing.
    """
    url = f"{section.api_url.rstrip('/')}/cgi-bin"
    secret = section.app_secret.read().get_secret_value()
    app = {"grant_type": "client_credential", "appid": section.app_id, "secret": secret}
    try:
        _, token = ask(f"{url}/stable_token", app)
        if "access_token" not in token:
            yield _refused("stable_token", token)
            return
        yield ok(f"the account is {section.app_id}")
        query = urlencode({"access_token": token["access_token"]})
        _, answer = ask(f"{url}/customservice/getkflist?{query}")
        if answer.get("errcode", 0) != 0:
            yield _refused("customservice/getkflist", answer)
            return
        yield ok("the account may send customer-service messages")
    except Unanswered as error:
        yield broken(f"{section.api_url} does not answer: {error}", "Check api_url.")


def _refused(method: str, answer: dict[str, object]) -> Finding:
    code = answer.get("errcode", 0)
    fix = _FIXES.get(code, "See the return codes of WeChat's Official Accounts.")
    return broken(f"{method}: {code}", fix)

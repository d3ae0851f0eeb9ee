"""Ask WeCom whether a channel's application is good."""

from collections.abc import Iterator
from urllib.parse import urlencode

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.doctor.findings import Finding, broken, ok
from turnmill.schemas.channels.sections.wecom import WeComSection

_FIXES = {
    40001: "Compare the secret with the application's page in the console.",
    40013: "Compare corp_id with My Enterprise in the console.",
    60020: "Add this host's address to the application's trusted IP addresses.",
    301002: "agent_id and the secret are of different applications. Compare both.",
}


def check_wecom(section: WeComSection) -> Iterator[Finding]:
    """Fetch a token, and ask for the application. Raises `SettingsError`: a secret is missing."""
    url = f"{section.api_url.rstrip('/')}/cgi-bin"
    secret = section.secret.read().get_secret_value()
    query = urlencode({"corpid": section.corp_id, "corpsecret": secret})
    try:
        _, token = ask(f"{url}/gettoken?{query}")
        if token.get("errcode") != 0:
            yield _refused("gettoken", token.get("errcode"))
            return
        yield ok(f"the enterprise is {section.corp_id}")
        query = urlencode({"access_token": token["access_token"], "agentid": section.agent_id})
        _, agent = ask(f"{url}/agent/get?{query}")
        if agent.get("errcode") != 0:
            yield _refused("agent/get", agent.get("errcode"))
            return
        yield ok(f"the application is {agent.get('name', '')} ({section.agent_id})")
    except Unanswered as error:
        yield broken(f"{section.api_url} does not answer: {error}", "Check api_url.")


def _refused(method: str, code: object) -> Finding:
    fix = _FIXES.get(code) if isinstance(code, int) else None
    return broken(f"{method}: {code}", fix or "See https://open.work.weixin.qq.com/devtool/query")

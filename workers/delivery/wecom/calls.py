"""WeCom's calls and codes: https://developer.work.weixin.qq.com/document/path/90313"""

from collections.abc import Mapping

from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.errors import DeliveryRefused
from turnmill.workers.delivery.calls.errcodes import Codes, TokenCalls, TokenRequest

#: The person is none that the application may write to.
_INVALID_USER = 81013

_CODES = Codes(
    "WeCom",
    bad_token=frozenset({40014, 41001, 42001}),
    #: Of calls, and of messages to one person.
    limits={45009: 30.0, 45033: 30.0, 45047: 30.0},
    advice={
        40001: "Compare the secret with the application's page in the console.",
        40013: "Compare corp_id with My Enterprise in the console.",
        40007: "The file is gone: WeCom keeps it for three days.",
        40056: "Compare agent_id with the application's page in the console.",
        48002: "The application may not send messages. Check its permissions in the console.",
        60020: "Add this host's address to the application's trusted IP addresses.",
        _INVALID_USER: "The person is outside of the application's visible range. Widen it.",
        301002: "agent_id and the secret are of different applications. Compare both.",
    },
    others="https://open.work.weixin.qq.com/devtool/query",
)


class Calls(TokenCalls):
    """One application's calls."""

    def __init__(self, section: WeComSection, timeout_s: float) -> None:
        secret = section.secret.read().get_secret_value()
        app = {"corpid": section.corp_id, "corpsecret": secret}
        super().__init__(_CODES, section.api_url, TokenRequest("GET", "gettoken", app), timeout_s)

    def send(self, message: Mapping[str, object]) -> str:
        """Send a message to one person, and return its id. Raises as `post`.

        WeCom answers 0 although it leaves somebody out.
        """
        answer = self.post("message/send", message)
        if answer.get("invaliduser"):
            raise self.refused("message/send", _INVALID_USER)
        if answer.get("unlicenseduser"):
            raise DeliveryRefused(
                "WeCom sent nothing: the person has no licence for interfaces (基础接口许可). Give "
                "them one in the console, then retry the delivery.",
                reason="unlicensed",
            )
        return str(answer.get("msgid", ""))

"""WeChat's calls and codes.

The token is the same for all who ask, so any number of delivery workers share an account:
https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken
"""

from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.workers.delivery.calls.errcodes import Codes, TokenCalls, TokenRequest

_SECRET = "Compare app_id and the AppSecret with the account's page."  # noqa: S105

_CODES = Codes(
    "WeChat",
    bad_token=frozenset({40001, 40014, 42001}),
    #: Of a day, and of a minute.
    limits={45009: 600.0, 45011: 60.0},
    advice={
        40001: _SECRET,
        40007: "The file is gone: WeChat keeps it for three days.",
        40013: _SECRET,
        40125: _SECRET,
        40164: "Add this host's address to the account's IP whitelist.",
        43004: "The person does not follow the account. Drop the delivery.",
        45015: "The person's last message is older than 48 hours, or they follow the account no "
        "more. Drop the delivery, or retry it when they have written again.",
        45047: "WeChat takes five messages after each of the person's. Retry the delivery when "
        "they have written again: what is missing of it will come.",
        48001: "The account may not send customer-service messages. Get it verified (微信认证).",
    },
    others="the return codes of WeChat's Official Accounts",
)


class Calls(TokenCalls):
    """One account's calls."""

    def __init__(self, section: WeChatSection, timeout_s: float) -> None:
        secret = section.app_secret.read().get_secret_value()
        app = {"grant_type": "client_credential", "appid": section.app_id, "secret": secret}
        request = TokenRequest("POST", "stable_token", {}, app)
        super().__init__(_CODES, section.api_url, request, timeout_s)

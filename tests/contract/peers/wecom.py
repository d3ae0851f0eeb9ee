"""WeCom, for the contract suite."""

from typing import Any, ClassVar

from pydantic import SecretStr
from wechatpy.enterprise.crypto import WeChatCrypto
from wechatpy.exceptions import WeChatException

from turnmill.infra.mocks.wecom import messages as wecom
from turnmill.schemas.channels.wechat import Sealer

from .base import Sent

CORP_ID = "wwturnmill"
#: What stands around the encrypted part.
AROUND = wecom.encode({"ToUserName": CORP_ID, "AgentID": "1000002", "Encrypt": ""})


class WeComPeer:
    section = """
        corp_id = "wwturnmill"
        agent_id = 1000002
        secret = { env = "CONTRACT_APP" }
        token = { env = "CONTRACT_SECRET" }
        encoding_aes_key = { env = "CONTRACT_KEY" }
    """
    secret = "made-up-token"  # noqa: S105
    variables: ClassVar = {
        "CONTRACT_SECRET": secret,
        "CONTRACT_KEY": "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C",
        "CONTRACT_APP": "made-up-app-secret",
    }
    #: Of the message before it is framed by 20 bytes and the id, padded, encoded and wrapped.
    max_body_bytes = (256 * 1024 - len(AROUND)) // 4 * 3 // 32 * 32 - 1 - 20 - len(CORP_ID)
    escapes = False
    #: And the encrypted part of the body.
    signs = frozenset({"time"})
    methods = "GET, POST"
    is_json = False

    def message(self, text: str, event_id: str | None = None) -> Any:
        return wecom.message(text, **({"MsgId": event_id} if event_id else {}))

    def attachment(self) -> Any:
        return wecom.message("", MsgType="image", PicUrl="https://a.example/b.png", MediaId="1")

    def own(self) -> Any:
        return wecom.message("I answered.", user=CORP_ID)

    def unknown(self) -> Any:
        return wecom.message("", MsgType="event", Event="enter_agent")

    def encode(self, payload: Any) -> bytes:
        return wecom.encode(payload)

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        key = SecretStr(self.variables["CONTRACT_KEY"])
        sealer = Sealer(SecretStr(secret or self.secret), key, CORP_ID)
        signed = wecom.sign(sealer, body, at=at)
        return Sent(signed.headers, signed.body, signed.query)

    def is_valid(self, sent: Sent) -> bool:
        crypto = WeChatCrypto(self.secret, self.variables["CONTRACT_KEY"], CORP_ID)
        query = sent.query
        try:
            plain = crypto.decrypt_message(
                sent.body, query["msg_signature"], query["timestamp"], query["nonce"]
            )
        except WeChatException:
            return False
        return "<FromUserName>alice<" in plain

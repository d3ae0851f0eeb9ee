"""Send messages as WeCom does: encrypted XML, signed in the query.

https://developer.work.weixin.qq.com/document/path/90239
"""

import secrets
import time
from xml.sax.saxutils import escape

from turnmill.infra.mocks.sending import Signed
from turnmill.schemas.channels.wechat import Sealer

XML = "text/xml"
Fields = dict[str, str]


def message(text: str, *, user: str = "alice", corp_id: str = "wwturnmill", **more: str) -> Fields:
    """The fields of somebody's message to the application."""
    return {
        "ToUserName": corp_id,
        "FromUserName": user,
        "CreateTime": str(int(time.time())),
        "MsgType": "text",
        "Content": text,
        "MsgId": str(secrets.randbelow(10**18)),
        "AgentID": "1000002",
        **more,
    }


def encode(fields: Fields) -> bytes:
    inner = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields.items())
    return f"<xml>{inner}</xml>".encode()


def sign(sealer: Sealer, plain: bytes, *, at: float | None = None) -> Signed:
    """Encrypt a message, and sign it as of now, or of another time (Unix seconds)."""
    sealed = sealer.seal(plain)
    body = encode({"ToUserName": "wwturnmill", "AgentID": "1000002", "Encrypt": sealed})
    return Signed({"Content-Type": XML}, body, query(sealer, sealed, at=at))


def query(sealer: Sealer, sealed: str, *, at: float | None = None) -> Fields:
    """What stands in the address of a request."""
    timestamp, nonce = str(int(time.time() if at is None else at)), secrets.token_hex(5)
    signature = sealer.sign(timestamp, nonce, sealed)
    return {"msg_signature": signature, "timestamp": timestamp, "nonce": nonce}

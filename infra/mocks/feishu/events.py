"""Send events as Feishu does: encrypted and signed."""

import secrets
import time

from pydantic import SecretStr

from turnmill.infra.mocks.sending import JSON, Signed
from turnmill.schemas.channels.feishu import seal
from turnmill.schemas.channels.signatures import sign_feishu


def sign(encrypt_key: str, plain: bytes, *, at: float | None = None) -> Signed:
    """Encrypt a body, and sign it as of now, or of another time (Unix seconds)."""
    key, timestamp = SecretStr(encrypt_key), str(int(time.time() if at is None else at))
    nonce, body = secrets.token_hex(8), seal(SecretStr(encrypt_key), plain)
    headers = {
        "Content-Type": f"{JSON}; charset=utf-8",
        "X-Lark-Request-Timestamp": timestamp,
        "X-Lark-Request-Nonce": nonce,
        "X-Lark-Signature": sign_feishu(key, timestamp, nonce, body),
    }
    return Signed(headers, body)

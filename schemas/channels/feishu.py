"""Feishu's encryption of events: `{"encrypt": base64(IV + AES-256-CBC)}`.

The key is the SHA-256 of the Encrypt Key, as `lark_oapi.core.utils.AESCipher` decrypts it (1.7.5).
"""

import base64
import binascii
import hashlib
import json
import secrets

from pydantic import SecretStr

from turnmill.schemas.channels.ciphers import BLOCK, decrypt, encrypt
from turnmill.schemas.errors import InvalidInput


def seal(secret: SecretStr, plain: bytes) -> bytes:
    """Encrypt the body of an event."""
    iv = secrets.token_bytes(BLOCK)
    sealed = base64.b64encode(iv + encrypt(_key(secret), iv, plain))
    return json.dumps({"encrypt": sealed.decode()}).encode()


def unseal(secret: SecretStr, sealed: str) -> bytes:
    """Decrypt what stands under `encrypt`. Raises `InvalidInput`."""
    try:
        data = base64.b64decode(sealed, validate=True)
        return decrypt(_key(secret), data[:BLOCK], data[BLOCK:])
    except (binascii.Error, ValueError):
        raise InvalidInput("The event cannot be decrypted. Compare the Encrypt Key.") from None


def _key(secret: SecretStr) -> bytes:
    return hashlib.sha256(secret.get_secret_value().encode()).digest()

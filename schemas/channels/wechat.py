"""WeChat's and WeCom's encryption: AES-256-CBC around 16 random bytes, a length, the text and its
owner's id.

https://developer.work.weixin.qq.com/document/path/90968
https://developers.weixin.qq.com/doc/oplatform/developers/dev/push/encryption.md
and as `wechatpy.crypto` does it (1.8.18).
"""

import base64
import binascii
import hashlib
import secrets
import struct

from pydantic import SecretStr

from turnmill.schemas.channels.ciphers import BLOCK, decrypt, encrypt
from turnmill.schemas.errors import InvalidInput, SettingsError

#: Padded to multiples of so many bytes.
_PADDED = 32


class Sealer:
    """Signs, encrypts and decrypts for one owner: an enterprise, or an account."""

    def __init__(self, token: SecretStr, encoding_key: SecretStr, owner: str) -> None:
        """Raises `SettingsError`: the key is none."""
        self._token = token.get_secret_value()
        self._owner = owner.encode()
        try:
            self._key = base64.b64decode(encoding_key.get_secret_value() + "=", validate=True)
        except ValueError:
            self._key = b""
        if len(self._key) != 32:
            raise SettingsError(
                "The EncodingAESKey must be the 43 letters and digits of the console."
            )

    def sign(self, timestamp: str, nonce: str, *sealed: str) -> str:
        """Return the value of `msg_signature`; with nothing sealed, of WeChat's `signature`."""
        signed = "".join(sorted((self._token, timestamp, nonce, *sealed)))
        return hashlib.sha1(signed.encode()).hexdigest()

    def seal(self, plain: bytes) -> str:
        framed = secrets.token_bytes(16) + struct.pack(">I", len(plain)) + plain + self._owner
        return base64.b64encode(encrypt(self._key, self._key[:BLOCK], framed, _PADDED)).decode()

    def unseal(self, sealed: str) -> bytes:
        """Decrypt what was encrypted for this owner. Raises `InvalidInput`."""
        try:
            data = base64.b64decode(sealed, validate=True)
            framed = decrypt(self._key, self._key[:BLOCK], data, _PADDED)
            (length,) = struct.unpack(">I", framed[16:20])
        except (binascii.Error, ValueError, struct.error):
            raise InvalidInput(
                "The message cannot be decrypted. Compare the EncodingAESKey."
            ) from None
        plain, owner = framed[20 : 20 + length], framed[20 + length :]
        if owner != self._owner:
            raise InvalidInput("The message is for somebody else. Compare corp_id, or app_id.")
        return plain

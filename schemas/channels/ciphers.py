"""AES in CBC mode, as Feishu and WeChat encrypt events. Needs the library `cryptography`."""

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

#: Bytes of AES's own block. Messages may be padded to a multiple of it.
BLOCK = 16


def encrypt(key: bytes, iv: bytes, plain: bytes, block: int = BLOCK) -> bytes:
    """Pad as PKCS #7 does (RFC 5652 section 6.3), and encrypt."""
    missing = block - len(plain) % block
    encryptor = Cipher(AES(key), CBC(iv)).encryptor()
    return encryptor.update(plain + bytes([missing]) * missing) + encryptor.finalize()


def decrypt(key: bytes, iv: bytes, encrypted: bytes, block: int = BLOCK) -> bytes:
    """Decrypt, and take the padding away.

    Raises:
        ValueError: the length or the padding is wrong, as with another key.
    """
    if not encrypted or len(encrypted) % BLOCK:
        raise ValueError("not whole blocks")
    decryptor = Cipher(AES(key), CBC(iv)).decryptor()
    padded = decryptor.update(encrypted) + decryptor.finalize()
    size = padded[-1]
    if not 0 < size <= min(block, len(padded)) or padded[-size:] != bytes([size]) * size:
        raise ValueError("wrong padding")
    return padded[:-size]

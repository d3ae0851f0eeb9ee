"""The key that the mock signs with. It is no secret: everybody has it, and only a channel whose
`api_url` leads to the mock believes it."""

from functools import cache

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

KEY_ID = "turnmill-mock"
#: The platforms that the mock's key may speak for.
ENDORSEMENTS = ["msteams"]

_E = 65537
_P = int(
    "c5a4380f53b81df58a1c452bd3a65f81260a745e31d85d65a276907e043e2a9e6e53b4d7f76020f133b1416fef3561f7"
    "69a499a4e1e56d8146f960f2a29163e138e24fa6ee71ad2a07275aa5a23bcb6d648bedf87fb579272563d7e17fee88a6"
    "74abd3109ef680d9db31eb6711f7720985c2a273dfad458423ddf3c04c449c49",
    16,
)
_Q = int(
    "c306caa394418bdaad37a462b3d12c14d02d2e0497c55550c07e96ea8f0bee8da905dc987402baae003eb31e69f6733a"
    "3fc5835ca0d1ec8886ed9720129318b369f7b94b3126009cbbf053e6ad1dc4c09e6ac3e10b05dabc8f635e4202e61f6d"
    "3f7061e39fcc95886f198c813a1b78ca71ef6f20c2383943fcc315afc8faae2f",
    16,
)


@cache
def private_key() -> RSAPrivateKey:
    d = rsa.rsa_recover_private_exponent(_E, _P, _Q)
    return rsa.RSAPrivateNumbers(
        p=_P,
        q=_Q,
        d=d,
        dmp1=rsa.rsa_crt_dmp1(d, _P),
        dmq1=rsa.rsa_crt_dmq1(d, _Q),
        iqmp=rsa.rsa_crt_iqmp(_P, _Q),
        public_numbers=rsa.RSAPublicNumbers(_E, _P * _Q),
    ).private_key()


@cache
def another_key() -> RSAPrivateKey:
    """A key that nobody knows."""
    return rsa.generate_private_key(_E, 2048)


def public_jwk() -> dict[str, object]:
    """The key as it stands in the list of signing keys."""
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(private_key().public_key(), as_dict=True)
    return {**jwk, "kid": KEY_ID, "x5t": KEY_ID, "use": "sig", "endorsements": ENDORSEMENTS}

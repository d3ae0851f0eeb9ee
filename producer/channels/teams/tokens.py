"""The token that comes with each activity.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-authentication,
"Verify the JWT token". That the claim is spelled `serviceurl` is what Microsoft's libraries say
(botframework-connector 4.17).
"""

from typing import TYPE_CHECKING

import jwt

from turnmill.producer.channels.teams.keys import Key, SigningKeys
from turnmill.schemas.channels.signatures import WINDOW_S
from turnmill.schemas.channels.teams import ISSUER, Services
from turnmill.schemas.errors import BadSignature

if TYPE_CHECKING:
    from jwt.types import Options

_ALGORITHM = "RS256"
_WRONG = (
    "The token is missing, wrong or of another time. Compare app_id with the Azure Bot's "
    "Microsoft App ID."
)


class Tokens:
    """Verifies the tokens for one app."""

    def __init__(self, app_id: str, services: Services, keys: SigningKeys) -> None:
        self._app_id = app_id
        self._services = services
        self._keys = keys

    def verify(self, authorization: str) -> "Token":
        """Verify the header of a request.

        Everything that needs no key is checked first: keys are not fetched for rubbish.

        Raises:
            BadSignature: it is none of the Bot Framework's, or not for this app, or too old.
            KeysNeeded, TransientError: as `SigningKeys.find`.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.isascii():
            raise BadSignature(_WRONG)
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != _ALGORITHM:
                raise BadSignature(_WRONG)
            self._decode(token, None)
            key = self._keys.find(str(header.get("kid")))
            if key is None:
                raise BadSignature("The token is signed with a key that Microsoft does not name.")
            claims = self._decode(token, key)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise BadSignature(_WRONG) from None
        return Token(claims, key.endorsements, self._services)

    def _decode(self, token: str, key: Key | None) -> dict[str, object]:
        """Read the claims, verified as far as the key goes. Raises `PyJWTError`."""
        options: Options = {
            "verify_signature": key is not None,
            "verify_exp": True,
            "verify_nbf": True,
            "verify_iss": True,
            "verify_aud": True,
            "require": ["exp", "nbf", "iss", "aud"],
        }
        return jwt.decode(
            token,
            key.public if key else "",
            algorithms=[_ALGORITHM],
            options=options,
            audience=self._app_id,
            issuer=ISSUER,
            leeway=WINDOW_S,
        )


class Token:
    """A token whose signature is good."""

    def __init__(
        self, claims: dict[str, object], endorsements: frozenset[str], services: Services
    ) -> None:
        self._claims, self._endorsements, self._services = claims, endorsements, services

    def check(self, activity: dict[str, object]) -> None:
        """Check that an activity is what the token is for, and answered where Microsoft is.

        Raises `BadSignature`.
        """
        address = activity.get("serviceUrl")
        if not isinstance(address, str) or address != self._claims.get("serviceurl"):
            raise BadSignature("The token is for another serviceUrl than the activity's.")
        if not self._services.is_trusted(address):
            raise BadSignature("The serviceUrl is no address of Teams: replies are not sent there.")
        if activity.get("channelId") not in self._endorsements:
            raise BadSignature("The token's key is not endorsed for the activity's channelId.")

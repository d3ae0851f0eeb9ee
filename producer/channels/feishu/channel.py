"""Feishu's requests: encrypted events and callbacks of cards, to one address.

Feishu waits 3 s for 200 and sends an event again after 15 s, 5 min, 1 h and 6 h:
https://open.feishu.cn/document/ukTMukTMukTM/uUTNz4SN1MjL1UzM
"""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from turnmill.producer.channels.base import JSON, Answer, Parsed, Request, read_json
from turnmill.producer.channels.feishu.events import read_event
from turnmill.producer.channels.feishu.payloads import Callback
from turnmill.producer.converse import Received
from turnmill.schemas.channels.feishu import unseal
from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.channels.signatures import are_equal, is_in_window, sign_feishu
from turnmill.schemas.errors import BadSignature, InvalidInput

_CHALLENGE = "url_verification"
_ACTION = "card.action.trigger"


class FeishuChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: FeishuSection) -> None:
        self._name = name
        self._bot = section.open_id
        self._key = section.encrypt_key.read()
        token = section.verification_token
        self._token = None if token is None else token.read()

    def verify(self, request: Request) -> None:
        """https://open.feishu.cn/document/ukTMukTMukTM/uYDNxYjL2QTM24iN0EjN/event-subscription-configure-/encrypt-key-encryption-configuration-case

        The challenge carries no signature: that it can be decrypted says whose it is. Every other
        request is signed, and the time of the signature is taken for the time of the try.
        """
        headers = request.headers
        if "x-lark-signature" not in headers and self._is_challenge(request):
            return
        timestamp = headers.get("x-lark-request-timestamp", "")
        if not is_in_window(timestamp, request.arrived_at):
            raise BadSignature("The timestamp is missing, or more than 5 minutes off.")
        nonce = headers.get("x-lark-request-nonce", "")
        expected = sign_feishu(self._key, timestamp, nonce, request.body)
        if not are_equal(headers.get("x-lark-signature", ""), expected):
            raise BadSignature("The signature is missing or wrong. Compare the Encrypt Key.")

    def parse(self, request: Request) -> Parsed:
        payload = self._open(request.body)
        header = payload.get("header")
        token = (header if isinstance(header, dict) else payload).get("token")
        if self._token is not None and not are_equal(str(token), self._token.get_secret_value()):
            raise BadSignature("The verification token is missing or wrong.")
        if payload.get("type") == _CHALLENGE:
            challenge = {"challenge": str(payload.get("challenge", ""))[:1000]}
            return Parsed(ignored=_CHALLENGE, answer=_json(challenge))
        try:
            callback = Callback.model_validate(payload)
            found = read_event(self._name, self._bot, callback)
        except ValidationError:
            return Parsed()
        if isinstance(found, str):
            return Parsed(ignored=found)
        is_action = callback.header.event_type == _ACTION
        return Parsed((found,), answer=_json({}) if is_action else Answer())

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer

    def _open(self, body: bytes) -> dict[str, object]:
        """Decrypt and read a body. Raises `InvalidInput`."""
        sealed = read_json(body).get("encrypt")
        if not isinstance(sealed, str):
            raise InvalidInput(
                "The event is not encrypted. Set an Encrypt Key under Events & Callbacks."
            )
        return read_json(unseal(self._key, sealed))

    def _is_challenge(self, request: Request) -> bool:
        try:
            return self._open(request.body).get("type") == _CHALLENGE
        except InvalidInput:
            return False


def _json(value: dict[str, str]) -> Answer:
    return Answer(json.dumps(value).encode(), JSON)

"""Requests whose body is encrypted XML, signed in the address.

https://developer.work.weixin.qq.com/document/path/90930
https://developers.weixin.qq.com/doc/oplatform/developers/dev/push/encryption.md

Both platforms wait 5 s for 200 and send a message twice more (three times in all).
"""

from collections.abc import Sequence

from pydantic import ValidationError

from turnmill.producer.channels.base import Answer, Parsed, Request
from turnmill.producer.channels.sealed.messages import read_message
from turnmill.producer.channels.sealed.xml import read_fields
from turnmill.producer.converse import Received
from turnmill.schemas.channels.signatures import are_equal, is_in_window
from turnmill.schemas.channels.wechat import Sealer
from turnmill.schemas.errors import BadSignature, InvalidInput


class SealedChannel:
    """What is the same for an application of WeCom and an account of WeChat."""

    #: A text has 2,048 bytes. What is larger is read by nobody before its signature is checked.
    max_body_bytes = 256 * 1024
    #: Which one is sent is documented nowhere; what it means is signed in any case.
    media_types = frozenset({"text/xml", "application/xml", ""})
    #: The address is verified by GET.
    methods = frozenset({"GET", "POST"})

    def __init__(self, name: str, sealer: Sealer) -> None:
        self._name = name
        self._sealer = sealer

    def verify(self, request: Request) -> None:
        """Compare `msg_signature`, which covers the encrypted part, the time and a nonce."""
        self._check(request, "msg_signature", _sealed_in(request))

    def parse(self, request: Request) -> Parsed:
        plain = self._sealer.unseal(_sealed_in(request))
        if request.method == "GET":
            return Parsed(ignored="echo", answer=Answer(plain, "text/plain"))
        try:
            found = read_message(self._name, read_fields(plain))
        except ValidationError:
            return Parsed()
        return Parsed(ignored=found) if isinstance(found, str) else Parsed((found,))

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        """The body of an answer to a message stays empty: the reply comes later, by a call."""
        return parsed.answer

    def _check(self, request: Request, name: str, *sealed: str) -> None:
        """Compare the signature in the address, and its time. Raises `BadSignature`."""
        query = request.query
        timestamp = query.get("timestamp", "")
        if not is_in_window(timestamp, request.arrived_at):
            raise BadSignature("The timestamp is missing, or more than 5 minutes off.")
        expected = self._sealer.sign(timestamp, query.get("nonce", ""), *sealed)
        if not are_equal(query.get(name, ""), expected):
            raise BadSignature("The signature is missing or wrong. Compare the token.")


def _sealed_in(request: Request) -> str:
    """The encrypted part of a request. Raises `BadSignature`: without one, nothing is signed."""
    try:
        fields = request.query if request.method == "GET" else read_fields(request.body)
    except InvalidInput:
        fields = {}
    sealed = fields.get("echostr" if request.method == "GET" else "Encrypt")
    if not sealed:
        raise BadSignature("Nothing is encrypted. Choose the safe mode (安全模式) on the platform.")
    return sealed

"""Requests to an official account of WeChat, in the safe mode.

https://developers.weixin.qq.com/doc/oplatform/developers/dev/push

An answer within 5 s could hold a reply. No model promises that, so the answer says `success`, after
which WeChat neither asks again nor tells the user of a failure; the reply is a customer-service
message.
"""

from collections.abc import Sequence

from turnmill.producer.channels.base import Answer, Parsed, Request
from turnmill.producer.channels.sealed.channel import SealedChannel
from turnmill.producer.converse import Received
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.channels.wechat import Sealer

_TAKEN = Answer(b"success", "text/plain")


class WeChatChannel(SealedChannel):
    def __init__(self, name: str, section: WeChatSection) -> None:
        token, key = section.token.read(), section.encoding_aes_key.read()
        super().__init__(name, Sealer(token, key, section.app_id))

    def verify(self, request: Request) -> None:
        """The check of the address is signed and not encrypted; messages are both."""
        if request.method == "GET":
            self._check(request, "signature")
        else:
            super().verify(request)

    def parse(self, request: Request) -> Parsed:
        if request.method == "GET":
            echo = request.query.get("echostr", "")[:1000]
            return Parsed(ignored="echo", answer=Answer(echo.encode(), "text/plain"))
        return super().parse(request)

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer if parsed.answer.body else _TAKEN

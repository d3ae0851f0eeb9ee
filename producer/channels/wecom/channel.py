"""WeCom's requests, of which even the check of the address is encrypted.

https://developer.work.weixin.qq.com/document/path/90930
"""

from turnmill.producer.channels.sealed.channel import SealedChannel
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.channels.wechat import Sealer


class WeComChannel(SealedChannel):
    def __init__(self, name: str, section: WeComSection) -> None:
        token, key = section.token.read(), section.encoding_aes_key.read()
        super().__init__(name, Sealer(token, key, section.corp_id))

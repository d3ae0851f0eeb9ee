"""What Feishu and Lark needs to be configured."""

from typing import Literal

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class FeishuSection(ChannelSection):
    """https://open.feishu.cn/document, or Lark, its edition outside China"""

    kind: Literal["feishu"]
    #: `cli_…`
    app_id: str
    app_secret: SecretReference
    #: Encrypts and signs events.
    encrypt_key: SecretReference
    #: Comes with each event, if it is to be compared too.
    verification_token: SecretReference | None = None
    #: `ou_…`: the bot's own id, which `turnmill channels check` shows. With it, only mentions of
    #: this bot count where the app receives every message of a group.
    open_id: str | None = None
    #: Lark: https://open.larksuite.com
    api_url: HTTPAddress = "https://open.feishu.cn"
    #: Whether replies appear while they are written, in a card that is updated.
    streams: bool = True

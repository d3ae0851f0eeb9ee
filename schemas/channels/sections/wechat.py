"""What an official account of WeChat needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class WeChatSection(ChannelSection):
    """https://developers.weixin.qq.com/doc/service/guide/, an account with customer service"""

    kind: Literal["wechat"]
    #: `wx…`: the account's AppID.
    app_id: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]
    #: The account's AppSecret: for calls.
    app_secret: SecretReference
    #: Signs what comes in.
    token: SecretReference
    #: Encrypts what comes in: 43 letters and digits.
    encoding_aes_key: SecretReference
    #: Another address of the API: a proxy with a whitelisted IP address, or the mock.
    api_url: HTTPAddress = "https://api.weixin.qq.com"

"""What WeCom needs to be configured."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class WeComSection(ChannelSection):
    """https://developer.work.weixin.qq.com/document/path/90556, an application of an enterprise"""

    kind: Literal["wecom"]
    #: `ww…`: the enterprise.
    corp_id: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]
    #: The number of the application.
    agent_id: Annotated[int, Field(ge=1)]
    #: Of the application: for calls.
    secret: SecretReference
    #: Signs what comes in.
    token: SecretReference
    #: Encrypts what comes in: 43 letters and digits.
    encoding_aes_key: SecretReference
    #: Another address of the API: a proxy with a trusted IP address, or the mock.
    api_url: HTTPAddress = "https://qyapi.weixin.qq.com"

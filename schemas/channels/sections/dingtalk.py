"""What DingTalk needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference

AppId = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]


class DingTalkSection(ChannelSection):
    """https://open.dingtalk.com/document/orgapp/robot-overview"""

    kind: Literal["dingtalk"]
    #: The app's Client ID (AppKey), `ding…`.
    client_id: AppId
    #: The app's Client Secret (AppSecret): signs what comes in, and fetches tokens.
    client_secret: SecretReference
    #: The bot's RobotCode; that of most apps is the Client ID.
    robot_code: AppId | None = None
    #: Another address of the API: the mock.
    api_url: HTTPAddress = "https://api.dingtalk.com"

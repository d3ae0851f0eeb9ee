"""What Slack needs to be configured."""

from typing import Literal

from pydantic import model_validator

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class SlackSection(ChannelSection):
    """https://docs.slack.dev/authentication"""

    kind: Literal["slack"]
    #: App-level signing secret, for requests; not needed with socket mode alone.
    signing_secret: SecretReference | None = None
    #: `xoxb-…`: the bot's token, for calls to the Web API.
    bot_token: SecretReference
    #: `xapp-…`: the app-level token of socket mode.
    app_token: SecretReference | None = None
    #: Another address of the Web API: a proxy, or the mock.
    api_url: HTTPAddress = "https://slack.com/api/"
    #: Whether replies appear while they are written (`chat.startStream`).
    streams: bool = True

    @model_validator(mode="after")
    def _has_a_way_in(self) -> "SlackSection":
        if self.signing_secret is None and self.app_token is None:
            raise ValueError(
                "needs signing_secret (for requests from Slack) or app_token (for socket mode)"
            )
        return self

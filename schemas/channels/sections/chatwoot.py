"""What Chatwoot needs to be configured."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class ChatwootSection(ChannelSection):
    """https://www.chatwoot.com/docs/product/others/agent-bots/"""

    kind: Literal["chatwoot"]
    #: The number in the dashboard's address: `/app/accounts/1/…`.
    account_id: Annotated[int, Field(ge=1, lt=2**63)]
    #: The agent bot's access token.
    bot_token: SecretReference
    #: The agent bot's secret, with which Chatwoot signs from 4.13 on.
    webhook_secret: SecretReference | None = None
    #: A secret of our making, which stands in the webhook's address as `?token=`: for older ones.
    url_token: SecretReference | None = None
    #: The installation's address.
    api_url: HTTPAddress = "https://app.chatwoot.com"

    @model_validator(mode="after")
    def _is_verified(self) -> "ChatwootSection":
        if self.webhook_secret is None and self.url_token is None:
            raise ValueError("needs webhook_secret (Chatwoot 4.13 and later) or url_token (before)")
        return self

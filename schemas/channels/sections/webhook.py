"""What signed webhooks needs to be configured."""

from typing import Literal

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class WebhookSection(ChannelSection):
    """Any other system, by signed webhooks both ways. https://www.standardwebhooks.com"""

    kind: Literal["webhook"]
    #: `whsec_…`: signs what comes in, and what goes out.
    secret: SecretReference
    #: Where replies are posted to.
    url: HTTPAddress

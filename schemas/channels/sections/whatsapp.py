"""What WhatsApp needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class WhatsAppSection(ChannelSection):
    """https://developers.facebook.com/docs/whatsapp/cloud-api"""

    kind: Literal["whatsapp"]
    #: The id of the business's number, not the number itself.
    phone_number_id: Annotated[str, StringConstraints(pattern="^[0-9]{5,20}$")]
    #: Signs what comes in.
    app_secret: SecretReference
    #: Of our making: Meta repeats it when it verifies the address.
    verify_token: SecretReference
    #: A system user's token, for sending.
    access_token: SecretReference
    #: Another address of the Graph API: the mock.
    api_url: HTTPAddress = "https://graph.facebook.com/v26.0"

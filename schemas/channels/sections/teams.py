"""What a Teams bot needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference

#: Tokens name it in lower case.
AppId = Annotated[str, StringConstraints(pattern="^[0-9A-Za-z-]{1,64}$", to_lower=True)]
#: A GUID, or one of the tenant's domains.
TenantId = Annotated[str, StringConstraints(pattern="^[0-9A-Za-z.-]{1,255}$")]


class TeamsSection(ChannelSection):
    """https://learn.microsoft.com/azure/bot-service/bot-service-quickstart-registration"""

    kind: Literal["teams"]
    #: The Microsoft App ID of the Azure Bot, a GUID.
    app_id: AppId
    #: A client secret of that app: fetches the tokens that replies are sent with.
    app_secret: SecretReference
    #: The tenant of a single-tenant app; left out, the app is multi-tenant.
    tenant_id: TenantId | None = None
    #: One address for all of Microsoft's services: the mock.
    api_url: HTTPAddress | None = None
    #: Whether replies appear while they are written, in a message that is edited.
    streams: bool = True

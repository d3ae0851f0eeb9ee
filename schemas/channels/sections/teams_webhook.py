"""What an outgoing webhook of a team in Teams needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, SecretReference


class TeamsWebhookSection(ChannelSection):
    """https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/add-outgoing-webhook"""

    kind: Literal["teams-webhook"]
    #: The security token that Teams shows once, base64: signs what comes in.
    token: SecretReference
    #: The address of the workflow that posts replies. Whoever has it can post.
    reply_url: SecretReference
    #: Teams wants an answer within five seconds. It says that the reply follows.
    acknowledgement: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = (
        "I am on it. My answer follows in this channel."
    )

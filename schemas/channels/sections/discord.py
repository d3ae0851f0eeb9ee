"""What Discord needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference

Snowflake = Annotated[str, StringConstraints(pattern="^[0-9]{5,20}$")]


class DiscordSection(ChannelSection):
    """https://discord.com/developers/docs/quick-start/overview-of-apps"""

    kind: Literal["discord"]
    application_id: Snowflake
    #: The application's public key: verifies what comes in.
    public_key: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")]
    #: The bot's token: registers commands, and sends what is later than fifteen minutes.
    bot_token: SecretReference
    #: A server whose commands are its own; everywhere when left out.
    guild_id: Snowflake | None = None
    #: Another address of the API: the mock.
    api_url: HTTPAddress = "https://discord.com/api/v10"
    #: Whether replies appear while they are written.
    streams: bool = True

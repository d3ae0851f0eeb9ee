"""What Telegram needs to be configured."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from turnmill.schemas.channels.sections.base import ChannelSection, HTTPAddress, SecretReference


class TelegramSection(ChannelSection):
    """https://core.telegram.org/bots/api"""

    kind: Literal["telegram"]
    #: `123456789:AA…`, from @BotFather.
    bot_token: SecretReference
    #: 1 to 256 of `A-Za-z0-9_-`: of our making; Telegram sends it with each update.
    secret_token: SecretReference
    #: The bot's name, as people mention it in groups.
    username: Annotated[str, StringConstraints(pattern="^@?[A-Za-z0-9_]{1,32}$")] | None = None
    #: Another address of the Bot API: a server of one's own, or the mock.
    api_url: HTTPAddress = "https://api.telegram.org"
    #: Whether replies appear while they are written.
    streams: bool = True

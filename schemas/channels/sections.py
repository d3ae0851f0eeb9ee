"""What a channel needs to be configured, by kind: one class and one line of `SECTIONS` each."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import DEFAULT_TENANT

NAME_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]

_FORM = 'write { env = "VARIABLE" } or { file = "/path" }'


def _check_http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that begins with https:// or http://")
    return url


HTTPAddress = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_check_http)]


class SecretReference(BaseModel):
    """Where a secret stands; the configuration itself holds none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str | None = None
    #: Relative to the configuration file.
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_secrets(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"is a secret, which does not belong into this file: {_FORM}")
        return value

    @field_validator("file")
    @classmethod
    def _resolve(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        folder: Path = (info.context or {}).get("folder", Path())
        return file and folder / file.expanduser()

    @model_validator(mode="after")
    def _name_one(self) -> "SecretReference":
        if (self.env is None) == (self.file is None):
            raise ValueError(_FORM)
        return self

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return f"environment variable {self.env}" if self.file is None else f"file {self.file}"

    def read(self) -> SecretStr:
        """Return the secret, without the white space around it. Raises `SettingsError`."""
        secret = ""
        if self.env is not None:
            secret = os.environ.get(self.env, "")
        elif self.file is not None:
            try:
                secret = self.file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise SettingsError(
                    f"The {self.place}, which a channel names for a secret, cannot be read: "
                    f"{reason}."
                ) from None
        if not (secret := secret.strip()):
            raise SettingsError(
                f"The {self.place}, which a channel names for a secret, is empty or missing."
            )
        return SecretStr(secret)


class ChannelSection(BaseModel):
    """What every channel has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    #: The name of the bot that answers, and the tenant that has it.
    bot: str
    tenant: str = DEFAULT_TENANT


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


class WebhookSection(ChannelSection):
    """Any other system, by signed webhooks both ways. https://www.standardwebhooks.com"""

    kind: Literal["webhook"]
    #: `whsec_…`: signs what comes in, and what goes out.
    secret: SecretReference
    #: Where replies are posted to.
    url: HTTPAddress


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


class FeishuSection(ChannelSection):
    """https://open.feishu.cn/document, or Lark, its edition outside China"""

    kind: Literal["feishu"]
    #: `cli_…`
    app_id: str
    app_secret: SecretReference
    #: Encrypts and signs events.
    encrypt_key: SecretReference
    #: Comes with each event, if it is to be compared too.
    verification_token: SecretReference | None = None
    #: `ou_…`: the bot's own id, which `turnmill channels check` shows. With it, only mentions of
    #: this bot count where the app receives every message of a group.
    open_id: str | None = None
    #: Lark: https://open.larksuite.com
    api_url: HTTPAddress = "https://open.feishu.cn"
    #: Whether replies appear while they are written, in a card that is updated.
    streams: bool = True


SECTIONS: dict[str, type[ChannelSection]] = {
    "feishu": FeishuSection,
    "slack": SlackSection,
    "telegram": TelegramSection,
    "webhook": WebhookSection,
    "whatsapp": WhatsAppSection,
}

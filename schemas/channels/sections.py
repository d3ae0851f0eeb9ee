"""What a channel needs to be configured, by kind: one class and one line of `SECTIONS` each."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import DEFAULT_TENANT

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class SecretReference(BaseModel):
    """Where a secret stands; the configuration itself holds none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _name_one(self) -> "SecretReference":
        if (self.env is None) == (self.file is None):
            raise ValueError('write { env = "VARIABLE" } or { file = "/path" }')
        return self

    def read(self) -> SecretStr:
        """Return the secret, without the line break at its end. Raises `SettingsError`."""
        if self.env is not None:
            secret = os.environ.get(self.env, "")
            source = f"the environment variable {self.env}"
        else:
            assert self.file is not None
            source = f"the file {self.file}"
            try:
                secret = self.file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{source} cannot be read: {type(error).__name__}.") from None
        if not (secret := secret.rstrip("\r\n")):
            raise SettingsError(f"{source} is empty or missing.")
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
    api_url: str = "https://slack.com/api/"
    #: Whether replies appear while they are written (`chat.startStream`).
    streams: bool = True


class WebhookSection(ChannelSection):
    """Any other system, by signed webhooks both ways. https://www.standardwebhooks.com"""

    kind: Literal["webhook"]
    #: `whsec_…`: signs what comes in, and what goes out.
    secret: SecretReference
    #: Where replies are posted to.
    url: str = Field(max_length=2000)


SECTIONS: dict[str, type[ChannelSection]] = {
    "slack": SlackSection,
    "webhook": WebhookSection,
}

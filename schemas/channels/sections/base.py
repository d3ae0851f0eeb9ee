"""What every channel has in the configuration, and how it refers to a secret."""

import os
from pathlib import Path
from typing import Annotated
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
    def _refuse_secrets(cls, value: object) -> object:
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

    @property
    def secrets(self) -> dict[str, SecretReference]:
        """References to the section's secrets, by field."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: it for name, it in values.items() if isinstance(it, SecretReference)}

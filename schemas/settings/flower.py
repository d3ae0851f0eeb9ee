"""Where Flower listens."""

from pydantic import (
    Field,
    SecretStr,
)

from turnmill.schemas.settings.section import Section


class FlowerSettings(Section):
    #: Address to listen on.
    host: str = "127.0.0.1"
    #: Port to listen on.
    port: int = Field(default=5555, ge=1, le=65535)
    #: Who logs in.
    user: str = "turnmill"
    #: Required: `turnmill flower` does not start without one.
    password: SecretStr | None = None

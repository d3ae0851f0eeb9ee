"""Where Flower listens, and what it shows and allows."""

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
    #: Attempts that Flower reads from PostgreSQL when it starts, the newest first; 6 kB of memory
    #: each.
    history: int = Field(default=5_000, ge=0, le=20_000)
    #: Let those who log in cancel turns (Flower's buttons Revoke and Terminate). Flower's other
    #: controls stay off: `turnmill workers` and `turnmill lanes` do what they are meant for.
    control: bool = False

"""Where the broker is, and how it is connected to."""

from typing import Annotated, Self

from pydantic import (
    Field,
    SecretStr,
    model_validator,
)

from turnmill.schemas.settings.section import SecretUrl, Section, checked_url
from turnmill.schemas.urls import AMQP, SENTINEL, check_broker_url

BrokerURL = Annotated[SecretUrl, checked_url(check_broker_url)]


class BrokerSettings(Section):
    #: `amqp://…` (RabbitMQ), `redis://…` (Redis or Valkey), `sentinel://…` (their Sentinels);
    #: several URLs joined with `;`.
    url: BrokerURL = SecretUrl("amqp://guest:guest@127.0.0.1:5672//")
    #: Sentinel: what it calls the primary (`sentinel monitor NAME …`).
    sentinel_primary: str | None = None
    #: Sentinel: its own password, if it asks for one; the URL has the primary's.
    sentinel_password: SecretStr | None = None
    #: RabbitMQ: heartbeat of a worker's connection; a silent one is replaced after about two.
    heartbeat_s: int = Field(default=8, ge=2)
    #: Redis: must exceed the longest turn plus the drain. Recovery is the rescuer's, not this.
    visibility_timeout_s: int = Field(default=420, ge=5)
    #: RabbitMQ: where `turnmill doctor` finds the management API, `http://user:password@host:15672`;
    #: port 15672 of the broker, with the broker's login, when left out.
    management_url: SecretUrl | None = None

    @model_validator(mode="after")
    def _knows_its_primary(self) -> Self:
        if self.is_sentinel and self.sentinel_primary is None:
            raise ValueError("Sentinel needs TURNMILL_BROKER__SENTINEL_PRIMARY, the primary's name")
        return self

    @property
    def is_sentinel(self) -> bool:
        return self._scheme in SENTINEL

    @property
    def is_amqp(self) -> bool:
        return self._scheme in AMQP

    @property
    def _scheme(self) -> str:
        return self.url.get_secret_value().partition("://")[0]

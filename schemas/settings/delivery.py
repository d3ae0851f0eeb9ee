"""How replies are brought to channels."""

from pydantic import Field, model_validator

from turnmill.schemas.channels.deliveries import MAX_LEASE_S
from turnmill.schemas.settings.section import Section


class DeliverySettings(Section):
    #: Deliveries of each channel that run at once. Channels do not wait for each other.
    concurrency: int = Field(default=8, ge=1, le=256)
    #: How long an attempt keeps its delivery after its last committed step; twice `timeout_s` or
    #: more. A delivery whose worker died is tried again after that.
    lease_s: float = Field(default=30.0, gt=0, le=MAX_LEASE_S)
    #: How long one call to a platform may take.
    timeout_s: float = Field(default=10.0, gt=0)
    #: Attempts that may fail before a delivery has failed; waiting because a platform asks for it
    #: does not count. With the longest pause of 30 s, the default is about half an hour.
    max_attempts: int = Field(default=60, ge=1, le=10_000)
    #: How long a stopping worker lets its deliveries finish.
    drain_s: float = Field(default=15.0, ge=0)

    @model_validator(mode="after")
    def _outlast_calls(self) -> "DeliverySettings":
        if self.lease_s < 2 * self.timeout_s:
            raise ValueError("lease_s must be twice timeout_s or more")
        return self

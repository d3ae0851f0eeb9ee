"""How hints are published, and to which worker."""

from pydantic import (
    Field,
)

from turnmill.schemas.settings.section import Section
from turnmill.schemas.turns import Lane


class RelaySettings(Section):
    #: Hints of one lane of one model that the broker may hold. The rest waits in Postgres,
    #: where it stays ordered, cancellable and cheap.
    window: int = Field(default=512, ge=1)
    #: Hints taken from the outbox at a time.
    batch_size: int = Field(default=64, ge=1, le=1000)
    #: Connections that publish in parallel. One is fastest beside its broker; a distant one,
    #: whose confirms take long, needs more.
    publishers: int = Field(default=1, ge=1, le=64)
    #: How often the outbox is looked at when nothing says that it changed.
    sweep_s: float = Field(default=1.0, gt=0)


class AffinitySettings(Section):
    #: For how long after its last reply a conversation's next turn goes to the worker that gave
    #: it, and has its KV cache; 0: to any worker.
    warm_s: float = Field(default=600.0, ge=0)
    #: What a turn may lose by that, at most, milliseconds: a hint that its worker has not taken by
    #: then is any worker's.
    ttl_ms: int = Field(default=200, ge=10, le=5000)
    #: The lanes whose conversations return to their worker.
    lanes: tuple[Lane, ...] = (Lane.INTERACTIVE,)

    @property
    def warm_lanes(self) -> tuple[Lane, ...]:
        """None when it is off."""
        return self.lanes if self.warm_s else ()

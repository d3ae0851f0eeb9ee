"""Where a process serves its metrics and probes."""

from pydantic import (
    Field,
)

from turnmill.schemas.settings.section import Section


class MetricsSettings(Section):
    #: Address on which each process (api, relay, worker) serves `/metrics`, `/live` and `/ready`,
    #: to whoever can reach it, without a key; `0.0.0.0` for all.
    host: str = "127.0.0.1"
    #: Port to listen on; 0, and where another process has it: any free one.
    port: int = Field(default=0, ge=0, le=65535)

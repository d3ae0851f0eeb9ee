"""What a simulator makes."""

from dataclasses import dataclass

from turnmill.infra.mocks.sending import Signed
from turnmill.producer.cli.views.console import make_console

console = make_console()


@dataclass(frozen=True, slots=True)
class Simulated:
    request: Signed
    #: As the channel reads it from the request.
    event_id: str

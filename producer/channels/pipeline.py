"""From a platform's request to its answer: verify ▸ parse ▸ receive ▸ acknowledge.

The answer is given when the events are committed, and nothing on the way waits for a broker, a
model or the platform. What was verified and means nothing to us is answered too: a platform that
gets errors sends again, and turns the address off in the end.
"""

from collections.abc import Callable
from uuid import UUID

import structlog

from turnmill.producer.channels.base import Answer, Channel, Parsed, Request
from turnmill.producer.converse import receive
from turnmill.producer.tenants import find_tenant
from turnmill.schemas.channels.policies import CHANNEL_POLICIES
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import (
    BadSignature,
    InvalidInput,
    TurnmillError,
    UnsupportedMediaType,
)
from turnmill.schemas.postgres.database import Database

#: Takes a channel's name and what became of a request or an event.
Count = Callable[[str, str], None]

log = structlog.get_logger()


class Pipeline:
    """The pipeline of one configured channel."""

    def __init__(
        self, name: str, section: ChannelSection, get_channel: Callable[[], Channel]
    ) -> None:
        """`get_channel` returns the channel with its latest secrets."""
        self.name = name
        self._get_channel = get_channel
        self._section = section
        self._tenant_id: UUID | None = None

    @property
    def channel(self) -> Channel:
        return self._get_channel()

    def understand(self, request: Request, count: Count) -> Parsed:
        """Verify and read a request. Touches nothing but the processor.

        Raises:
            BadSignature: it is not the platform's.
            UnsupportedMediaType: it is, but of no type that the platform sends.
            InvalidInput: the body cannot be read.
        """
        channel = self.channel
        try:
            channel.verify(request)
            if request.media_type not in channel.media_types and request.method == "POST":
                known = ", ".join(sorted(channel.media_types))
                raise UnsupportedMediaType(f"The content type must be one of: {known}.")
            parsed = channel.parse(request)
        except (BadSignature, InvalidInput) as error:
            log.warning("channel.refused", channel=self.name, code=error.code)
            count(self.name, error.code)
            raise
        if not parsed.events:
            count(self.name, parsed.ignored)
        return parsed

    def receive(self, database: Database, parsed: Parsed, count: Count) -> Answer:
        """Commit the events, each in a transaction, and answer.

        Raises:
            NotFound: the channel's tenant is missing.
            TurnmillError: as `receive` of converse. The platform will send the events again.
        """
        section = self._section
        received = []
        try:
            if self._tenant_id is None:
                self._tenant_id = find_tenant(database, section.tenant)
            for event in parsed.events:
                found = receive(
                    database, self.name, self._tenant_id, section.bot, CHANNEL_POLICIES, event
                )
                received.append(found)
                count(self.name, found.kind)
        except TurnmillError as error:
            # Nobody else tells why a platform's users wait in vain.
            log.warning("channel.failed", channel=self.name, code=error.code, reason=error.message)
            count(self.name, error.code)
            raise
        return self.channel.acknowledge(parsed, received)

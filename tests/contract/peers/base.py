"""What the contract suite needs of a platform."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Sent:
    """A signed request."""

    headers: dict[str, str]
    body: bytes
    #: What stands in the address.
    query: dict[str, str] = field(default_factory=dict)


class Peer(Protocol):
    """A platform. Each message begins, or belongs to, the same conversation."""

    #: The section of `turnmill.toml`, without kind and bot.
    section: str
    #: What the section's references lead to.
    variables: Mapping[str, str]
    max_body_bytes: int
    #: Whether texts arrive with `&`, `<` and `>` escaped.
    escapes: bool
    #: What is signed: of `body` and `time`, those that a replay or a change would be found by.
    signs: frozenset[str]
    methods: str
    #: Payloads are JSON, which can hold what PostgreSQL cannot store.
    is_json: bool

    def message(self, text: str, event_id: str | None = None) -> Any: ...
    def attachment(self) -> Any: ...
    def own(self) -> Any: ...
    def unknown(self) -> Any: ...
    def encode(self, payload: Any) -> bytes: ...
    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent: ...

    def is_valid(self, sent: Sent) -> bool:
        """What the platform's own library says of a signature."""

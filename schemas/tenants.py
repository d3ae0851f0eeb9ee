"""What an API key may be used for, and whose it is."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from turnmill.schemas.errors import NotPermitted


class Scope(StrEnum):
    """One thing an API key may be used for (OAuth's term, RFC 6749 section 3.3)."""

    #: Chat, models, and the tenant's own turns, conversations, files and users.
    TURNS = "turns"
    #: Batches of turns.
    BATCHES = "batches"
    #: Parked turns, deliveries, bots and vector stores. Users: forget them.
    ADMIN = "admin"
    #: `/metrics`, whose figures cover every tenant.
    METRICS = "metrics"


#: What a key may do when nothing else is asked for.
DEFAULT_SCOPES = (Scope.TURNS, Scope.BATCHES)


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant that an API key belongs to, and what the key may be used for."""

    tenant_id: UUID
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Raise `NotPermitted` unless the key has this scope."""
        if scope not in self.scopes:
            # A key with the missing scope alone would be refused what this one may do.
            scopes = " --scope ".join(each for each in Scope if each in {*self.scopes, scope})
            raise NotPermitted(
                f"This API key does not have the scope '{scope}'. Create one that has it: "
                f"turnmill keys create NAME --scope {scopes}"
            )

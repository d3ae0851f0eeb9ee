"""Who is calling, and what the key may do: `Authorization: Bearer tm-…`.

A key that was good is believed for a few seconds more, so that a busy client does not cost a
query per call; a revoked key therefore works at most that much longer. A key that was refused
is looked up every time.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from turnmill.producer.api.services import ServicesOf
from turnmill.producer.tenants import authenticate
from turnmill.schemas.errors import NotAuthenticated
from turnmill.schemas.tenants import Caller, Scope

#: How long a key is believed without being looked up.
TRUST_S = 5.0
#: Keys remembered, at most.
MAX_KEYS = 4096

_bearer = HTTPBearer(
    auto_error=False, description="An API key, `tm-…`. Create one: `turnmill keys create`."
)


class KnownKeys:
    """The callers whose keys were seen lately, oldest first. Lives in one event loop: no locks."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    def find(self, secret: str) -> Caller | None:
        caller, until = self._entries.get(_digest(secret), (None, 0.0))
        return caller if time.monotonic() < until else None

    def add(self, secret: str, caller: Caller) -> None:
        self._entries[_digest(secret)] = (caller, time.monotonic() + TRUST_S)
        self._entries.move_to_end(_digest(secret))
        if len(self._entries) > MAX_KEYS:
            self._entries.popitem(last=False)


async def _caller(
    request: Request,
    services: ServicesOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    if credentials is None:
        raise NotAuthenticated(
            "You didn't provide an API key. Send 'Authorization: Bearer tm-…'; "
            "turnmill keys create makes one."
        )
    known: KnownKeys = request.app.state.known_keys
    secret = credentials.credentials
    caller = known.find(secret)
    if caller is None:
        caller = await services.call(authenticate, services.database, secret)
        known.add(secret, caller)
    return caller


def _tenant_with(scope: Scope) -> Callable[[Caller], Awaitable[UUID]]:
    async def tenant(caller: Annotated[Caller, Depends(_caller)]) -> UUID:
        caller.require(scope)
        return caller.tenant_id

    return tenant


def _digest(secret: str) -> bytes:
    """Memory holds no secrets longer than the call does."""
    return hashlib.sha256(secret.encode()).digest()


#: Parameters of handlers that need an API key with a scope: the tenant the key belongs to.
TenantOf = Annotated[UUID, Depends(_tenant_with(Scope.TURNS))]
AdministeredTenantOf = Annotated[UUID, Depends(_tenant_with(Scope.ADMIN))]
ObservingTenantOf = Annotated[UUID, Depends(_tenant_with(Scope.METRICS))]

"""Who is calling, and what the key may do: `Authorization: Bearer tm-…`.

A key that was good is believed for a few seconds more, so that a busy client does not cost a
query per call; a revoked key therefore works at most that much longer. A key that was refused is
refused for a moment without a query. Keys that were never good are looked up apart, where they
take no thread and no connection from calls that are accepted.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from turnmill.producer.api.services import Services, ServicesOf
from turnmill.producer.tenants import WRONG_KEY, authenticate
from turnmill.schemas.errors import NotAuthenticated
from turnmill.schemas.tenants import Caller, Scope

#: How long a key is believed without being looked up.
TRUST_S = 5.0
#: How long a key is refused without being looked up.
DISTRUST_S = 1.0
#: Keys remembered, at most: good ones, and as many others.
MAX_KEYS = 4096

T = TypeVar("T")

_KEY = re.compile(r"tm-[A-Za-z0-9_-]{43}")

_bearer = HTTPBearer(
    auto_error=False, description="An API key, `tm-…`. Create one: `turnmill keys create NAME`."
)


class KnownKeys:
    """What was found out about keys lately, oldest first. Lives in one event loop: no locks."""

    def __init__(self) -> None:
        self._callers: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    def find(self, secret: str) -> Caller | None:
        caller, until = self._callers.get(_digest(secret), (None, 0.0))
        return caller if time.monotonic() < until else None

    def was_good(self, secret: str) -> bool:
        return _digest(secret) in self._callers

    def is_refused(self, secret: str) -> bool:
        return time.monotonic() < self._refused.get(_digest(secret), 0.0)

    def add(self, secret: str, caller: Caller) -> None:
        _remember(self._callers, _digest(secret), (caller, time.monotonic() + TRUST_S))

    def refuse(self, secret: str) -> None:
        self._callers.pop(_digest(secret), None)
        _remember(self._refused, _digest(secret), time.monotonic() + DISTRUST_S)


def _remember(entries: OrderedDict[bytes, T], key: bytes, value: T) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > MAX_KEYS:
        entries.popitem(last=False)


async def _caller(
    request: Request,
    services: ServicesOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    if credentials is None:
        raise NotAuthenticated(
            "You didn't provide an API key. Send 'Authorization: Bearer tm-…'; "
            "turnmill keys create NAME makes one."
        )
    known: KnownKeys = request.app.state.known_keys
    secret = credentials.credentials
    caller = known.find(secret)
    return caller or await _look_up(known, services, secret)


async def _look_up(known: KnownKeys, services: Services, secret: str) -> Caller:
    if known.is_refused(secret) or not _KEY.fullmatch(secret):
        raise NotAuthenticated(WRONG_KEY)
    try:
        if known.was_good(secret):
            caller = await services.call(authenticate, services.database, secret)
        else:
            caller = await services.lookout.call(lambda database: authenticate(database, secret))
    except NotAuthenticated:
        known.refuse(secret)
        raise
    known.add(secret, caller)
    return caller


@dataclass(frozen=True, slots=True)
class _TenantWith:
    scope: Scope

    async def __call__(self, caller: Annotated[Caller, Depends(_caller)]) -> UUID:
        caller.require(self.scope)
        return caller.tenant_id


def tenants_of(handler: Dependant) -> list[_TenantWith]:
    """Find the tenants that a handler takes, itself or through what it depends on."""
    found: list[_TenantWith] = []
    for each in handler.dependencies:
        if isinstance(each.call, _TenantWith):
            found.append(each.call)
        found += tenants_of(each)
    return found


async def require_tenants(request: Request, tenants: Iterable[_TenantWith]) -> None:
    """Refuse a caller whom one of a handler's tenants refuses, before the body is read.

    Raises `NotAuthenticated` and `NotPermitted`.
    """
    services: Services = request.app.state.services
    for tenant in tenants:
        await tenant(await _caller(request, services, await _bearer(request)))


def _digest(secret: str) -> bytes:
    """Memory holds no secrets longer than the call does."""
    return hashlib.sha256(secret.encode()).digest()


#: Parameters of handlers that need an API key with a scope: the tenant the key belongs to.
TenantOf = Annotated[UUID, Depends(_TenantWith(Scope.TURNS))]
AdministeredTenantOf = Annotated[UUID, Depends(_TenantWith(Scope.ADMIN))]
ObservingTenantOf = Annotated[UUID, Depends(_TenantWith(Scope.METRICS))]

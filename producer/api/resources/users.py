"""`/users`: what is remembered of the users of a tenant's bots.

A user's key has two parts: `api:4711` is who calls name in `safety_identifier` or `user`,
`acme-slack:U0ADA` whom a channel knows by this id.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.producer.api.auth import AdministeredTenantOf, TenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.services import ServicesOf
from turnmill.producer.memory import users
from turnmill.producer.memory.forgetting import forget_user, read_erasure
from turnmill.producer.memory.users import MAX_NAME, MAX_VALUE, Fact, User
from turnmill.schemas.content import refuse_nul
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.store.memory.remembered import Source

router = APIRouter(tags=["users"], route_class=BodyRoute)

_STORABLE = AfterValidator(refuse_nul)
UserKey = Annotated[str, Path(max_length=users.MAX_KEY), _STORABLE]
FactKey = Annotated[str, Path(min_length=1, max_length=MAX_NAME), _STORABLE]
Value = Annotated[str, StringConstraints(min_length=1, max_length=MAX_VALUE), _STORABLE]


class FactBody(BaseModel):
    """A fact, and where it comes from."""

    key: str
    value: str
    source: Source
    #: The turn that it comes from; null: a call or a command.
    turn_id: str | None
    created_at: datetime

    @classmethod
    def of(cls, fact: Fact) -> "FactBody":
        """Show a fact."""
        turn_id = None if fact.turn_id is None else show_id(Prefix.TURN, fact.turn_id)
        return cls(
            key=fact.key,
            value=fact.value,
            source=fact.source,
            turn_id=turn_id,
            created_at=fact.created_at,
        )


class UserBody(BaseModel):
    """A user of whom something is kept."""

    key: str
    preferences: Mapping[str, str]
    #: Whether turns are told of the user; null: nobody has decided it.
    memory_on: bool | None
    consent_at: datetime | None
    created_at: datetime
    fact_count: int

    @classmethod
    def of(cls, user: User) -> "UserBody":
        """Show a user."""
        return cls(**{name: getattr(user, name) for name in cls.model_fields})


class ErasureBody(BaseModel):
    """A user who is to be forgotten."""

    #: What was said until then is erased.
    at: datetime
    #: When nothing of it was left; null: some of it is left.
    done_at: datetime | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MemoryBody(_Body):
    #: The user agrees to be remembered, or does not.
    memory_on: bool


class ConfirmationBody(_Body):
    #: Whether the proposed fact is right.
    is_right: bool = True


class ValueBody(_Body):
    value: Value


@router.get("/users")
async def list_users(
    services: ServicesOf,
    tenant_id: TenantOf,
    after: Annotated[str, Query(max_length=users.MAX_KEY), _STORABLE] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[UserBody]:
    """The users of whom anything is kept, by key. `after`: the last key of the page before."""

    def read() -> list[User]:
        return users.list_users(services.database, tenant_id, after=after, limit=limit)

    return [UserBody.of(user) for user in await services.call(read)]


@router.get("/users/{user:path}/facts")
async def list_facts(user: UserKey, services: ServicesOf, tenant_id: TenantOf) -> list[FactBody]:
    """What is remembered of a user, and which turn it comes from."""
    facts = await services.call(users.list_facts, services.database, tenant_id, user)
    return [FactBody.of(fact) for fact in facts]


@router.put("/users/{user:path}/facts/{fact:path}", status_code=204)
async def put_fact(
    user: UserKey, fact: FactKey, body: ValueBody, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Remember a fact of a user; one of the same name gives way to it."""
    await services.call(users.remember, services.database, tenant_id, user, fact, body.value)


@router.delete("/users/{user:path}/facts/{fact:path}", status_code=204)
async def delete_fact(
    user: UserKey, fact: FactKey, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Forget a fact of a user, with its earlier values."""
    await services.call(users.forget_fact, services.database, tenant_id, user, fact)


@router.post("/users/{user:path}/facts/{fact:path}/confirmation", status_code=204)
async def confirm_fact(
    user: UserKey, fact: FactKey, body: ConfirmationBody, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Confirm a proposed fact of a user, or delete the proposal."""

    def confirm() -> None:
        users.answer_proposal(services.database, tenant_id, user, fact, is_right=body.is_right)

    await services.call(confirm)


@router.get("/users/{user:path}/preferences")
async def get_preferences(
    user: UserKey, services: ServicesOf, tenant_id: TenantOf
) -> dict[str, str]:
    """How a user wants to be answered: texts by name."""
    found = await services.call(users.read_user, services.database, tenant_id, user)
    return dict(found.preferences)


@router.put("/users/{user:path}/preferences", status_code=204)
async def put_preferences(
    user: UserKey,
    body: Annotated[dict[str, Value], Field(max_length=users.MAX_PREFERENCES)],
    services: ServicesOf,
    tenant_id: TenantOf,
) -> None:
    """Replace the preferences of a user; `{}` takes them back."""
    await services.call(users.set_preferences, services.database, tenant_id, user, body)


@router.get("/users/{user:path}/export")
async def export_user(
    user: UserKey, services: ServicesOf, tenant_id: TenantOf
) -> dict[str, object]:
    """All that is remembered of a user, earlier values too."""
    return await services.call(users.export, services.database, tenant_id, user)


@router.get("/users/{user:path}/erasure")
async def get_erasure(
    user: UserKey, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> ErasureBody:
    """Whether a user who is to be forgotten is."""
    found = await services.call(read_erasure, services.database, tenant_id, user)
    return ErasureBody(at=found.at, done_at=found.done_at)


@router.delete("/users/{user:path}", status_code=202)
async def delete_user(
    user: UserKey, services: ServicesOf, tenant_id: AdministeredTenantOf
) -> ErasureBody:
    """Forget a user: cancel the open turns, and erase all that the user ever said and all replies
    since. Workers do it within seconds where nothing is being answered; it cannot be taken back."""
    found = await services.call(forget_user, services.database, tenant_id, user)
    return ErasureBody(at=found.at, done_at=found.done_at)


@router.get("/users/{user:path}")
async def get_user(user: UserKey, services: ServicesOf, tenant_id: TenantOf) -> UserBody:
    """A user, and whether the user agreed to be remembered."""
    return UserBody.of(await services.call(users.read_user, services.database, tenant_id, user))


@router.patch("/users/{user:path}", status_code=204)
async def change_user(
    user: UserKey, body: MemoryBody, services: ServicesOf, tenant_id: TenantOf
) -> None:
    """Record that a user agrees to be remembered, or does not."""

    def change() -> None:
        users.set_memory(services.database, tenant_id, user, is_on=body.memory_on)

    await services.call(change)

"""Tenants, their API keys and their bots."""

import hashlib
import secrets
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.errors import Conflict, InvalidInput, NotAuthenticated, NotFound
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.settings import DEFAULT_TENANT, Settings
from turnmill.schemas.store.tables import api_keys, bots, conversations, tenants
from turnmill.schemas.tenants import DEFAULT_SCOPES, Caller, Scope
from turnmill.schemas.turns import GenerationParams

#: Characters of a tenant's or bot's name.
MAX_NAME = 100

WRONG_KEY = "The API key is wrong or revoked. Create one: turnmill keys create NAME"

#: Small models wander at temperature 1; the model card of SmolLM2 recommends these.
_SMALL_MODEL_PARAMS = GenerationParams(temperature=0.2, top_p=0.9, max_tokens=256)


class Tenant(NamedTuple):
    name: str
    key_count: int
    bot_count: int
    allows_training: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class APIKey:
    key_id: UUID
    name: str
    hint: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None

    @property
    def shown_id(self) -> str:
        return show_id(Prefix.KEY, self.key_id)


@dataclass(frozen=True, slots=True)
class Bot:
    name: str
    model: str
    instructions: str
    params: GenerationParams
    ignores_tools: bool
    created_at: datetime
    #: Counts its changes; each turn keeps the one that it was accepted for.
    version: int
    policies: Policies


class BotRow(NamedTuple):
    """A row of `BOTS`."""

    id: UUID
    name: str
    model: str
    instructions: str
    params: dict[str, object]
    ignores_tools: bool
    created_at: datetime
    version: int
    policies: dict[str, object] | None

    @property
    def bot(self) -> Bot:
        return Bot(
            self.name,
            self.model,
            self.instructions,
            GenerationParams.model_validate(self.params),
            self.ignores_tools,
            self.created_at,
            self.version,
            Policies.of(self.policies),
        )


#: Bots that are not deleted.
BOTS = sa.select(*(bots.c[name] for name in BotRow._fields)).where(bots.c.deleted_at.is_(None))


def ensure_defaults(database: Database, settings: Settings) -> UUID:
    """The default tenant's id; on first use creates it with a bot named like the engine's model."""
    with database.begin() as connection:
        connection.execute(
            insert(tenants).values(id=new_id(), name=DEFAULT_TENANT).on_conflict_do_nothing()
        )
        tenant_id: UUID = connection.execute(
            sa.select(tenants.c.id).where(tenants.c.name == DEFAULT_TENANT)
        ).scalar_one()
        _add_default_bot(connection, tenant_id, settings)
    return tenant_id


def create_tenant(database: Database, name: str, settings: Settings) -> UUID:
    """Create a tenant with a bot named like the engine's model, and return the tenant's id.

    Raises:
        InvalidInput: the name is not 1 to 100 printable characters.
        Conflict: the name is taken.
    """
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(
            f"A tenant's name has 1 to {MAX_NAME} printable characters.", param="name"
        )
    create = insert(tenants).values(id=new_id(), name=name).on_conflict_do_nothing()
    with database.begin() as connection:
        tenant_id: UUID | None = connection.execute(
            create.returning(tenants.c.id)
        ).scalar_one_or_none()
        if tenant_id is None:
            raise Conflict(f"There is a tenant '{name}' already.", param="name")
        _add_default_bot(connection, tenant_id, settings)
    return tenant_id


def find_tenant(database: Database, name: str) -> UUID:
    """Return the id of the tenant with this name. Raises `NotFound`."""
    with database.begin() as connection:
        tenant_id: UUID | None = connection.execute(
            sa.select(tenants.c.id).where(tenants.c.name == name)
        ).scalar_one_or_none()
    if tenant_id is None:
        raise NotFound(
            f"There is no tenant '{name[:MAX_NAME]}'. "
            "List them with 'turnmill tenants list', or create it with "
            f"'turnmill tenants create {shlex.quote(name[:MAX_NAME])}'."
        )
    return tenant_id


def list_tenants(database: Database) -> list[Tenant]:
    """Return all tenants by name, with the number of their bots and of their keys in force."""
    key_count = (
        sa.select(sa.func.count())
        .where(api_keys.c.tenant_id == tenants.c.id, api_keys.c.revoked_at.is_(None))
        .scalar_subquery()
    )
    bot_count = (
        sa.select(sa.func.count())
        .where(bots.c.tenant_id == tenants.c.id, bots.c.deleted_at.is_(None))
        .scalar_subquery()
    )
    query = sa.select(
        tenants.c.name,
        key_count.label("key_count"),
        bot_count.label("bot_count"),
        tenants.c.allows_training,
        tenants.c.created_at,
    )
    with database.begin() as connection:
        return typed(Tenant, connection.execute(query.order_by(tenants.c.name)))


def set_training(database: Database, name: str, *, is_allowed: bool) -> None:
    """Record whether the tenant agreed that its conversations train models.

    Raises:
        NotFound: there is no such tenant.
    """
    change = sa.update(tenants).where(tenants.c.name == name).values(allows_training=is_allowed)
    with database.begin() as connection:
        if not connection.execute(change).rowcount:
            raise NotFound(f"There is no tenant '{name}'. See: turnmill tenants list")


def set_conversation_training(
    database: Database, tenant_id: UUID, conversation_id: UUID, *, is_allowed: bool
) -> None:
    """Record whether a conversation may train models, where its tenant agreed to it.

    Raises:
        NotFound: the tenant has no such conversation.
    """
    change = (
        sa.update(conversations)
        .where(conversations.c.id == conversation_id, conversations.c.tenant_id == tenant_id)
        .values(refuses_training=not is_allowed)
    )
    with database.begin() as connection:
        if not connection.execute(change).rowcount:
            raise NotFound("There is no such conversation.")


def _add_default_bot(connection: sa.Connection, tenant_id: UUID, settings: Settings) -> None:
    model = settings.engine.model_name
    params = _SMALL_MODEL_PARAMS.model_dump(mode="json", exclude_defaults=True)
    connection.execute(
        insert(bots)
        .values(id=new_id(), tenant_id=tenant_id, name=model, model=model, params=params)
        .on_conflict_do_nothing()
    )


def save_bot(
    database: Database,
    tenant_id: UUID,
    name: str,
    model: str,
    instructions: str,
    params: GenerationParams,
    *,
    ignores_tools: bool = False,
    policies: Policies | None = None,
) -> None:
    """Create a bot, or change it from the next turn on; without policies, it keeps those it has.

    Raises:
        InvalidInput: the name is empty or too long.
    """
    if not name.strip() or len(name) > MAX_NAME:
        raise InvalidInput(f"A bot's name has 1 to {MAX_NAME} characters.", param="name")
    values: dict[str, object] = {
        "model": model,
        "instructions": instructions,
        "params": params.model_dump(mode="json", exclude_defaults=True),
        "ignores_tools": ignores_tools,
        "deleted_at": None,
    }
    if policies is not None:
        values["policies"] = policies.stored
    statement = insert(bots).values(id=new_id(), tenant_id=tenant_id, name=name, **values)
    changed = sa.or_(*(bots.c[column].is_distinct_from(values[column]) for column in values))
    with database.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["tenant_id", "name"],
                set_={**values, "version": bots.c.version + 1},
                where=changed,
            )
        )


def list_bots(database: Database, tenant_id: UUID) -> list[Bot]:
    query = BOTS.where(bots.c.tenant_id == tenant_id).order_by(bots.c.name)
    with database.begin() as connection:
        return [row.bot for row in typed(BotRow, connection.execute(query))]


def ignores_tools(database: Database, tenant_id: UUID, name: str) -> bool:
    """Whether the bot with this name is there and set to ignore tools."""
    query = "SELECT 1 FROM bots WHERE tenant_id = %s AND name = %s AND ignores_tools"
    return bool(database.run(query, (tenant_id, name)))


class _KeyRow(NamedTuple):
    """A row of `api_keys`."""

    id: UUID
    name: str
    hint: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class _Owner(NamedTuple):
    """Whose an API key is."""

    tenant_id: UUID
    scopes: list[str]


def create_key(
    database: Database, tenant_id: UUID, name: str, scopes: Iterable[Scope] = DEFAULT_SCOPES
) -> str:
    """Create an API key and return its secret, `tm-` and 43 characters.

    The secret is shown once: the database stores only its hash.
    """
    secret = f"tm-{secrets.token_urlsafe(32)}"
    with database.begin() as connection:
        connection.execute(
            api_keys.insert().values(
                id=new_id(),
                tenant_id=tenant_id,
                name=name,
                hint=secret[:9],
                digest=_digest(secret),
                scopes=sorted(set(scopes)),
            )
        )
    return secret


def list_keys(database: Database, tenant_id: UUID) -> list[APIKey]:
    query = sa.select(*(api_keys.c[name] for name in _KeyRow._fields)).where(
        api_keys.c.tenant_id == tenant_id
    )
    with database.begin() as connection:
        rows = typed(_KeyRow, connection.execute(query.order_by(api_keys.c.created_at)))
    return [
        APIKey(row.id, row.name, row.hint, tuple(row.scopes), row.created_at, row.revoked_at)
        for row in rows
    ]


def revoke_key(database: Database, tenant_id: UUID, key_id: UUID) -> None:
    """Refuse the key from now on. Raises `NotFound`."""
    with database.begin() as connection:
        changed = connection.execute(
            api_keys.update()
            .where(api_keys.c.id == key_id, api_keys.c.tenant_id == tenant_id)
            .values(revoked_at=sa.func.coalesce(api_keys.c.revoked_at, sa.func.clock_timestamp()))
        )
        if changed.rowcount == 0:
            raise NotFound("There is no such API key.")


def authenticate(database: Database, secret: str) -> Caller:
    """Return whose key this is and what it may be used for. Raises `NotAuthenticated`."""
    query = sa.select(api_keys.c.tenant_id, api_keys.c.scopes).where(
        api_keys.c.digest == _digest(secret), api_keys.c.revoked_at.is_(None)
    )
    with database.begin() as connection:
        found = typed(_Owner, connection.execute(query))
    if not found:
        raise NotAuthenticated(WRONG_KEY)
    return Caller(found[0].tenant_id, frozenset(found[0].scopes))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()

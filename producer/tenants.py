"""Tenants, their API keys and their bots."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from turnmill.schemas.database import Database
from turnmill.schemas.errors import InvalidInput, NotAuthenticated, NotFound
from turnmill.schemas.ids import Prefix, new_id, show_id
from turnmill.schemas.settings import Settings
from turnmill.schemas.tables import api_keys, bots, tenants
from turnmill.schemas.turns import GenerationParams

DEFAULT_TENANT = "default"

#: Small models wander at temperature 1; the model card of SmolLM2 recommends these.
_SMALL_MODEL_PARAMS = GenerationParams(temperature=0.2, top_p=0.9, max_tokens=256)


@dataclass(frozen=True, slots=True)
class APIKey:
    key_id: UUID
    name: str
    hint: str
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
    created_at: datetime


def ensure_defaults(database: Database, settings: Settings) -> UUID:
    """The default tenant's id; on first use creates it with a bot named like the engine's model."""
    model = settings.engine.model_name
    params = _SMALL_MODEL_PARAMS.model_dump(mode="json", exclude_defaults=True)
    with database.begin() as connection:
        connection.execute(
            insert(tenants).values(id=new_id(), name=DEFAULT_TENANT).on_conflict_do_nothing()
        )
        tenant_id: UUID = connection.execute(
            sa.select(tenants.c.id).where(tenants.c.name == DEFAULT_TENANT)
        ).scalar_one()
        connection.execute(
            insert(bots)
            .values(id=new_id(), tenant_id=tenant_id, name=model, model=model, params=params)
            .on_conflict_do_nothing()
        )
    return tenant_id


def save_bot(
    database: Database,
    tenant_id: UUID,
    name: str,
    model: str,
    instructions: str,
    params: GenerationParams,
) -> None:
    """Create a bot, or change it from the next turn on. Raises `InvalidInput`."""
    if not name.strip() or len(name) > 100:
        raise InvalidInput("A bot's name has 1 to 100 characters.", param="name")
    values = {
        "model": model,
        "instructions": instructions,
        "params": params.model_dump(mode="json", exclude_defaults=True),
    }
    statement = insert(bots).values(id=new_id(), tenant_id=tenant_id, name=name, **values)
    with database.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=["tenant_id", "name"], set_=values)
        )


def list_bots(database: Database, tenant_id: UUID) -> list[Bot]:
    query = sa.select(bots).where(bots.c.tenant_id == tenant_id).order_by(bots.c.name)
    with database.begin() as connection:
        return [
            Bot(
                row.name,
                row.model,
                row.instructions,
                GenerationParams.model_validate(row.params),
                row.created_at,
            )
            for row in connection.execute(query)
        ]


def create_key(database: Database, tenant_id: UUID, name: str) -> str:
    """A new API key's secret, `tm-` and 43 characters. It is shown once: only its hash is kept."""
    secret = f"tm-{secrets.token_urlsafe(32)}"
    with database.begin() as connection:
        connection.execute(
            api_keys.insert().values(
                id=new_id(),
                tenant_id=tenant_id,
                name=name,
                hint=secret[:9],
                digest=_digest(secret),
            )
        )
    return secret


def list_keys(database: Database, tenant_id: UUID) -> list[APIKey]:
    query = sa.select(api_keys).where(api_keys.c.tenant_id == tenant_id)
    with database.begin() as connection:
        return [
            APIKey(row.id, row.name, row.hint, row.created_at, row.revoked_at)
            for row in connection.execute(query.order_by(api_keys.c.created_at))
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


def authenticate(database: Database, secret: str) -> UUID:
    """The tenant an API key belongs to. Raises `NotAuthenticated`."""
    query = sa.select(api_keys.c.tenant_id).where(
        api_keys.c.digest == _digest(secret), api_keys.c.revoked_at.is_(None)
    )
    with database.begin() as connection:
        tenant_id: UUID | None = connection.execute(query).scalar_one_or_none()
    if tenant_id is None:
        raise NotAuthenticated("The API key is wrong or revoked. Create one: turnmill keys create")
    return tenant_id


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()

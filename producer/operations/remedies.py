"""Parts of the commands that messages print: such a command must work as it stands.

It names the tenant or the model where its own default would be another one. What only a person
knows stands in capitals: NAME, WEIGHTS, FILE.
"""

import shlex
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Cursor
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.settings import DEFAULT_TENANT, Settings
from turnmill.schemas.turns import Lane


class _Tenant(NamedTuple):
    name: str


_TENANT = "SELECT name FROM tenants WHERE id = %s"


def tenant_option(name: str, default: str = DEFAULT_TENANT) -> str:
    """The option for a tenant; empty for the one that commands act for without it."""
    return "" if name == default else f" --tenant {shlex.quote(name)}"


def option_of_tenant(cursor: Cursor, tenant_id: UUID) -> str:
    """The option for a tenant that is known by its id."""
    rows = fetch(cursor, _Tenant, _TENANT, (tenant_id,))
    return "".join(tenant_option(row.name) for row in rows)


def model_option(model: str) -> str:
    """The option for a model; empty for all models."""
    return f" --model {shlex.quote(model)}" if model else ""


def worker_command(model: str, lane: Lane | str, settings: Settings) -> str:
    """The command that starts a worker for a lane of a model.

    Which weights another model has is not known here. With its name alone the weights that this
    installation is set to would answer in its name.
    """
    alone = " --concurrency 1" if lane == Lane.QUARANTINE else ""
    command = f"turnmill worker --lane {lane}{alone}"
    if model == settings.engine.model_name:
        return command
    name = shlex.quote(model)
    return f"TURNMILL_ENGINE__MODEL=WEIGHTS TURNMILL_ENGINE__SERVED_NAME={name} {command}"

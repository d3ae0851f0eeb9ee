"""Read, change and delete one bot.

A change says what is to be different, and null takes a parameter back to its default:

https://www.rfc-editor.org/rfc/rfc7396 (JSON Merge Patch)
"""

from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.producer.tenants import BOTS, MAX_NAME, Bot, BotRow
from turnmill.schemas.content import refuse_nul
from turnmill.schemas.errors import UnknownBot
from turnmill.schemas.formats.checking import check_format
from turnmill.schemas.openai.formats import AskedFormat
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import typed
from turnmill.schemas.store.tables import bots
from turnmill.schemas.turns import GenerationParams, SamplingParams, Stop

_STORABLE = AfterValidator(refuse_nul)


class ParamsChange(SamplingParams):
    """Parameters to set. Null takes one back: its default in `DEFAULT_PARAMS` counts again."""

    stop: tuple[Stop, ...] | None = Field(default=None, max_length=4)  # type: ignore[assignment]
    #: What its replies are held to, unless a call says otherwise; as a call has it.
    response_format: AskedFormat | None = None

    def applied_to(self, params: GenerationParams) -> GenerationParams:
        """Return `params` with what was given.

        Raises:
            InvalidInput: the format cannot be kept.
        """
        given = self.model_dump(mode="json", include=self.model_fields_set)
        if self.response_format is not None:
            format = self.response_format.read()
            check_format(format)
            given["response_format"] = None if format.type == "text" else format.model_dump()
        stored = params.model_dump(mode="json", exclude_defaults=True) | given
        kept = {name: value for name, value in stored.items() if value is not None}
        return GenerationParams.model_validate(kept)


class BotChange(BaseModel):
    """What to change of a bot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The workers' model.
    model: (
        Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), _STORABLE] | None
    ) = None
    #: The system message.
    instructions: Annotated[str, _STORABLE] | None = None
    #: Answer calls that offer tools without using them.
    ignores_tools: bool | None = None
    params: ParamsChange = ParamsChange()


def read_bot(database: Database, tenant_id: UUID, name: str) -> Bot:
    """Read one bot. Raises `UnknownBot`."""
    with database.begin() as connection:
        return _row(connection, tenant_id, name).bot


def change_bot(database: Database, tenant_id: UUID, name: str, change: BotChange) -> Bot:
    """Change a bot from its next turn on, and return it as it is then.

    Raises:
        UnknownBot: the tenant has no bot of this name.
        InvalidInput: its format cannot be kept.
    """
    with database.begin() as connection:
        row = _row(connection, tenant_id, name, is_locked=True)
        values = change.model_dump(include={"model", "instructions", "ignores_tools"})
        values = {column: value for column, value in values.items() if value is not None}
        params = change.params.applied_to(GenerationParams.model_validate(row.params))
        values["params"] = params.model_dump(mode="json", exclude_defaults=True)
        changed = sa.or_(*(bots.c[column].is_distinct_from(values[column]) for column in values))
        connection.execute(
            sa.update(bots)
            .where(bots.c.id == row.id, changed)
            .values(**values, version=bots.c.version + 1)
        )
        return _row(connection, tenant_id, name).bot


def delete_bot(database: Database, tenant_id: UUID, name: str) -> None:
    """Let a bot answer no new turns. What was accepted is answered, and its conversations stay.

    Saving a bot of this name brings it back, with its conversations.

    Raises:
        UnknownBot: the tenant has no bot of this name.
    """
    with database.begin() as connection:
        row = _row(connection, tenant_id, name, is_locked=True)
        connection.execute(
            sa.update(bots).where(bots.c.id == row.id).values(deleted_at=sa.func.now())
        )


def _row(
    connection: sa.Connection, tenant_id: UUID, name: str, *, is_locked: bool = False
) -> BotRow:
    query = BOTS.where(bots.c.tenant_id == tenant_id, bots.c.name == name)
    found = typed(BotRow, connection.execute(query.with_for_update() if is_locked else query))
    if not found:
        raise UnknownBot(f"There is no bot '{name[:200]}'.", param="name")
    return found[0]

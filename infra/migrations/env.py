"""Alembic's entry point: runs the migrations on the connection that `upgrade` hands over."""

from alembic import context

import turnmill.schemas.store.channels.tables
import turnmill.schemas.store.files.tables
import turnmill.schemas.store.knowledge.tables
import turnmill.schemas.store.studies.tables  # noqa: F401 - likewise
from turnmill.schemas.store.partitions import is_partition
from turnmill.schemas.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=lambda name, kind, _: kind != "table" or not is_partition(name),
    transaction_per_migration=True,
)
context.run_migrations()

"""Alembic's entry point: runs the migrations on the connection that `upgrade` hands over."""

from alembic import context

import turnmill.schemas.store.channels.tables  # noqa: F401 - adds its tables to the metadata
from turnmill.schemas.store.partitions import is_partition
from turnmill.schemas.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=lambda name, kind, _: kind != "table" or not is_partition(name),
    transaction_per_migration=False,
)
context.run_migrations()

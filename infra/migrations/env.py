"""Alembic's entry point: runs the migrations on the connection that `upgrade` hands over."""

from alembic import context

from turnmill.schemas.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
context.run_migrations()

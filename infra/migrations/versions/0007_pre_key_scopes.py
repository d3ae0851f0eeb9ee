"""What an API key may be used for

A column with a default: PostgreSQL rewrites no row for it, and API processes of the previous
release create keys without it. Until now every key read `/metrics`, which covers all tenants:
only the default tenant's keys, which are the operator's, keep that.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    default = sa.text("'{turns,batches,admin}'")
    op.add_column(
        "api_keys", sa.Column("scopes", ARRAY(sa.Text()), nullable=False, server_default=default)
    )
    op.execute(
        "UPDATE api_keys SET scopes = '{turns,batches,admin,metrics}' "
        "WHERE tenant_id IN (SELECT id FROM tenants WHERE name = 'default')"
    )


def downgrade() -> None:
    op.drop_column("api_keys", "scopes")

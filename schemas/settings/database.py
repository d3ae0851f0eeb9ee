"""Where PostgreSQL is, and how it is connected to."""

from typing import Annotated

from pydantic import (
    Field,
)

from turnmill.schemas.settings.section import SecretUrl, Section, checked_url
from turnmill.schemas.urls import check_database_url

DatabaseURL = Annotated[SecretUrl, checked_url(check_database_url)]


class DatabaseSettings(Section):
    #: libpq URL, `postgresql://user:password@host[,host2]:5432/name?target_session_attrs=read-write`.
    url: DatabaseURL = SecretUrl("postgresql://turnmill@127.0.0.1:5432/turnmill")
    #: The same database without its pooler, where `url` leads through one in transaction mode
    #: (PgBouncer, Supavisor, …): for LISTEN, advisory locks and migrations. `url` when left out.
    direct_url: DatabaseURL | None = None
    #: Connections a process keeps, at most.
    pool_size: int = Field(default=16, ge=1, le=1000)
    #: How long one attempt to connect may take.
    connect_timeout_s: int = Field(default=3, ge=1)
    #: A statement that gets no answer for so long is given up, and its connection with it.
    answer_timeout_s: float = Field(default=10.0, ge=2)
    #: `turnmill doctor` demands a synchronous standby, as it does when `url` has several hosts.
    require_standby: bool = False

    @property
    def is_pooled(self) -> bool:
        """Whether each transaction may have another server connection: no session state."""
        return self.direct_url is not None

    @property
    def session_url(self) -> SecretUrl:
        """Leads to a connection that keeps its session."""
        return self.direct_url or self.url

    @property
    def has_several_hosts(self) -> bool:
        return "," in self.url.get_secret_value().partition("?")[0].rpartition("@")[2]

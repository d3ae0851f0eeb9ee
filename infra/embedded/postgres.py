"""PostgreSQL out of a wheel: real, durable, on loopback, with a generated password.

It dies with its owner (a fast shutdown, even when the owner was killed with `kill -9`) and
recovers from anything but the loss of its folder. Connect with `url`.
"""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import psycopg

from turnmill.infra.embedded.binaries import postgres_bin, program_version
from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import NOBODY, SECRETS_FILE, server_uid
from turnmill.infra.embedded.owner import ensure_role, hand_over
from turnmill.infra.embedded.ports import LOOPBACK
from turnmill.infra.embedded.server import EmbeddedServer, await_predecessor
from turnmill.schemas.errors import StackError
from turnmill.schemas.process.launch import launch_command

#: The server's superuser, and the role that owns the application's database.
USER = DATABASE = "turnmill"
APP_USER = "turnmill_app"
#: In a URL: on loopback without TLS, whatever PGSSLMODE, PGCHANNELBINDING and PGREQUIREAUTH want of
#: real servers. libpq knows the last one from release 16 on.
CLEARTEXT = "sslmode=disable&channel_binding=prefer" + (
    "&require_auth=scram-sha-256" if psycopg.pq.version() >= 160000 else ""
)
_PROGRAM_TIMEOUT_S = 300.0

_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    # Every process of the stack keeps a pool of its own.
    "max_connections": "200",
    "shared_buffers": "128MB",
    # Parallel queries need /dev/shm, of which containers often have 64 MB only.
    "max_parallel_workers_per_gather": "0",
    # Laptops and cloud disks alike are flash.
    "random_page_cost": "1.1",
    # Queue tables are small and change all the time.
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_scale_factor": "0.05",
    # Fewer checkpoints, so fewer full pages in the log, at the price of a longer recovery.
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    # Statements carry prompts; no log may.
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
}

#: Folders made before had LC_CTYPE C. Neither order nor case depends on it under the builtin
#: provider, so that no index changes; sessions that begin after this see it.
_MEND_CTYPE = """
UPDATE pg_database SET datctype = 'C.UTF-8' WHERE datctype = 'C' AND datlocprovider = 'b'
"""

_LACKS_PGVECTOR = """
SELECT name FROM pg_available_extensions WHERE name = 'vector' AND installed_version IS NULL
"""

#: For tests: survives `kill -9`, but not a power cut. Iterations protect passwords that can be
#: guessed, as ours cannot, and are 3 ms of each connection.
_VOLATILE = {"fsync": "off", "full_page_writes": "off", "scram_iterations": "1"}


class EmbeddedPostgres(EmbeddedServer):
    name: ClassVar[str] = "postgres"

    def __init__(
        self,
        folder: Path | str,
        *,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` win over ours; `durable=False` is for tests: no power cut may happen."""
        super().__init__(folder)
        self._durable = durable
        self._settings = {**_SETTINGS, **({} if durable else _VOLATILE), **(settings or {})}
        self._bin = Path()

    @property
    def url(self) -> str:
        """The superuser's way, for whoever looks after the server."""
        return self._url(DATABASE)

    @property
    def app_url(self) -> str:
        """The application's way: its role owns the database, and is no superuser."""
        login = f"{APP_USER}:{self._app_password}"
        return f"postgresql://{login}@{LOOPBACK}:{self.port}/{DATABASE}?{CLEARTEXT}"

    @property
    def _app_password(self) -> str:
        return self.folder.secret(APP_USER)

    @property
    def data(self) -> Path:
        return self.folder.path / self.name / "data"

    def children(self) -> list[Child]:
        settings = {**self._settings, "port": str(self.port)}
        options = [word for item in settings.items() for word in ("-c", "=".join(item))]
        child = Child(
            name=self.name,
            title="PostgreSQL",
            command=[str(self._bin / "postgres"), "-D", str(self.data), *options],
            prepare=self._initialise,
            ready=lambda pid: self._has_database(),
            ready_every_s=0.05,
            # A recovery reads the log since the last checkpoint.
            ready_timeout_s=300,
            environment=_environment(),
            uid=server_uid(),
            # SIGINT is its fast shutdown: sessions are ended, nothing is lost.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            stop_timeout_s=30,
        )
        return [child]

    def _prepare(self) -> None:
        self._bin = postgres_bin(self.folder.path / "bin")
        self.folder.server_folder(self.name)
        self._refuse_other_version()

    def _refuse_other_version(self) -> None:
        try:
            theirs = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return
        ours = (program_version(self._bin / "postgres") or "").rpartition(" ")[2].partition(".")[0]
        if ours != theirs:
            raise StackError(
                f"The data folder {self.folder.path} was made by PostgreSQL {theirs}; installed is "
                f"PostgreSQL {ours}. Dump it with the old version and restore it with the new one, "
                "or choose another folder with --data."
            )

    def _initialise(self) -> None:
        await_predecessor(self.data / "postmaster.pid", self.data, "postgres")
        if not self.data.exists():
            draft = self._new_draft()
            self._create(draft)
            self.folder.give_to_server(draft)
            # Complete or absent: an interrupted initdb must not look like a database.
            draft.rename(self.data)
        self.folder.give_to_server(self.data.parent)

    def _new_draft(self) -> Path:
        """Return an empty folder for `initdb`, beside the server's own, which is closed to it."""
        draft = self.folder.path / f"{self.name}.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if (uid := _creator_uid()) is not None:
            os.chown(draft, uid, uid)
        return draft

    def _create(self, target: Path) -> None:
        """Make a data folder that was not there."""
        _require_account()
        password_file = self.folder.write_private(
            "initdb.password", self.folder.secret(self.name), uid=_creator_uid()
        )
        command = ["initdb", "-D", str(target), "-U", USER]
        command += ["-A", "scram-sha-256", "--pwfile", str(password_file), "-E", "UTF8"]
        # The provider sorts; LC_CTYPE, which `--locale` sets, classifies letters for searches.
        command += ["--locale=C.UTF-8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += [] if self._durable else ["--no-sync", "-c", "scram_iterations=1"]
        try:
            self._run(command)
        finally:
            password_file.unlink()

    def _run(self, command: list[str], **variables: str) -> None:
        """Run a program of PostgreSQL that fills a data folder. Raises `StackError`."""
        program, *words = command
        result = subprocess.run(
            launch_command([str(self._bin / program), *words], uid=_creator_uid()),
            env=_environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PROGRAM_TIMEOUT_S,
            check=False,
        )
        if result.returncode != 0:
            raise StackError(f"PostgreSQL's {program} failed:\n{result.stdout}")

    def _has_database(self) -> bool:
        """Ready means: it answers a query, and our database exists and is the application's."""
        try:
            with self._connect("postgres") as link:
                found = link.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchone()
                if found is None:
                    link.execute(f"CREATE DATABASE {DATABASE}")
                link.execute(_MEND_CTYPE)
                ensure_role(link, APP_USER, self._app_password)
            with self._connect(DATABASE) as link:
                hand_over(link, DATABASE, APP_USER)
                # Only a superuser may. Knowledge uses it, and does without.
                if link.execute(_LACKS_PGVECTOR).fetchone():
                    link.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StackError(
                    f"The password in {self.folder.path / SECRETS_FILE} does not open the database "
                    "beside it. Restore the file that belongs to this data folder."
                ) from None
            return False
        except psycopg.errors.ReadOnlySqlTransaction:
            # It replays an archive yet.
            return False
        return True

    def _connect(self, database: str) -> psycopg.Connection:
        url = f"{self._url(database)}?{CLEARTEXT}"
        return psycopg.connect(url, connect_timeout=2, autocommit=True)

    def _url(self, database: str) -> str:
        password = self.folder.secret(self.name)
        return f"postgresql://{USER}:{password}@{LOOPBACK}:{self.port}/{database}"


def _creator_uid() -> int | None:
    """The user id that fills a new data folder, which changes hands afterwards.

    `initdb` refuses an id that no account has, as the servers' own is.
    """
    return None if server_uid() is None else NOBODY


def _require_account() -> None:
    """Raises `StackError` if nobody has this user id: `initdb` asks for its name."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise StackError(
            f"PostgreSQL makes no data folder for user id {os.geteuid()}, which no account has. "
            "Add one to /etc/passwd, choose another user (docker run --user), or name a PostgreSQL "
            "that runs already: TURNMILL_DATABASE__URL."
        ) from None


def _environment() -> dict[str, str]:
    """Ours without PGDATA and its kind, and with messages we can read."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}

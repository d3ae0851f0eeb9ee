"""Migrations: they build exactly the tables that the code describes, and go both ways."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import turnmill.schemas.store.channels.tables
import turnmill.schemas.store.files.tables
import turnmill.schemas.store.memory.tables
import turnmill.schemas.store.studies.tables  # noqa: F401 - likewise
from turnmill.infra import migrations
from turnmill.infra.migrations import current_revision, head_revision, upgrade
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.ids import first_id
from turnmill.schemas.store.partitions import PARTITIONED, Month, create_month, is_partition
from turnmill.schemas.store.tables import attempts, metadata, replies


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(empty_database_url),
        poolclass=sa.NullPool,
    )
    yield engine
    engine.dispose()


@pytest.fixture
def configuration() -> Config:
    configuration = Config()
    folder = Path(next(iter(migrations.__path__)))
    configuration.set_main_option("script_location", str(folder))
    configuration.set_main_option("path_separator", "os")
    return configuration


def downgrade(engine: sa.Engine, configuration: Config, revision: str) -> None:
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, revision)


def differences(engine: sa.Engine) -> list[object]:
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "table" or not is_partition(name),
        }
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))


def schema(engine: sa.Engine) -> list[tuple[str, ...]]:
    """All columns, constraints and indexes, as Postgres itself spells them.

    Partitions are left out: which there are depends on the day.
    """
    statement = """
        SELECT 'column', c.table_name, c.column_name, c.data_type, c.udt_name, c.is_nullable,
               coalesce(c.column_default, ''), c.is_identity
        FROM information_schema.columns c WHERE c.table_schema = 'public'
        UNION ALL SELECT 'constraint', conrelid::regclass::text, conname,
               pg_get_constraintdef(oid), '', '', '', ''
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT 'index', tablename, indexname, indexdef, '', '', '', ''
        FROM pg_indexes WHERE schemaname = 'public'
        ORDER BY 1, 2, 3
    """
    with engine.connect() as connection:
        rows = connection.execute(sa.text(statement))
        return [
            tuple(row) for row in rows if row[1] != "alembic_version" and not is_partition(row[1])
        ]


def test_the_migrations_build_what_the_code_describes(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url)
    assert differences(engine) == []
    with engine.connect() as connection:
        assert current_revision(connection) == head_revision()


def test_the_comparison_would_notice_a_difference(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE turns ALTER attempt SET DEFAULT 7"))
        connection.execute(sa.text("ALTER TABLE turns ALTER seq TYPE bigint"))
        connection.execute(sa.text("DROP INDEX ix_outbox_unpublished"))
    assert len(differences(engine)) == 3


def test_a_migrated_database_is_the_same_as_one_made_from_the_tables(
    engine: sa.Engine, empty_database_url: str
) -> None:
    metadata.create_all(engine)
    from_tables = schema(engine)
    metadata.drop_all(engine)
    upgrade(empty_database_url)
    assert schema(engine) == from_tables


def test_a_database_can_go_back_to_nothing_and_up_again(
    engine: sa.Engine, empty_database_url: str, configuration: Config
) -> None:
    upgrade(empty_database_url)
    before = schema(engine)
    downgrade(engine, configuration, "base")
    assert schema(engine) == []
    upgrade(empty_database_url)
    assert schema(engine) == before


def test_every_revision_can_be_undone_and_redone_by_itself(
    engine: sa.Engine, empty_database_url: str, configuration: Config
) -> None:
    revisions = list(ScriptDirectory.from_config(configuration).walk_revisions())
    for revision in reversed(revisions):
        before = schema(engine)
        upgrade(empty_database_url, revision.revision)
        downgrade(engine, configuration, revision.down_revision or "base")
        assert schema(engine) == before
        upgrade(empty_database_url, revision.revision)


def test_there_is_one_head_and_each_file_says_when_it_may_run(configuration: Config) -> None:
    script = ScriptDirectory.from_config(configuration)
    assert len(script.get_heads()) == 1
    for revision in script.walk_revisions():
        number, when, *_ = Path(revision.path).stem.split("_")
        assert number.isdigit()
        assert when in ("pre", "post")


def test_processes_that_start_together_migrate_once(
    engine: sa.Engine, empty_database_url: str
) -> None:
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(upgrade, empty_database_url) for _ in range(4)]:
            future.result(60)
    assert differences(engine) == []


def test_upgrading_twice_keeps_what_is_there(engine: sa.Engine, empty_database_url: str) -> None:
    upgrade(empty_database_url)
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'kept')")
        )
    upgrade(empty_database_url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT name FROM tenants")).scalar_one() == "kept"


def test_attempts_and_replies_become_partitions_and_whole_again_with_their_rows(
    engine: sa.Engine, empty_database_url: str, configuration: Config
) -> None:
    now = datetime.now(UTC)
    # An old turn, one of today, and one by a clock a year ahead, which fits no month.
    ids = [first_id(now + timedelta(days=days)) for days in (-400, 0, 365)]
    upgrade(empty_database_url, "0002")
    with engine.begin() as connection:
        for turn_id in ids:
            connection.execute(
                sa.insert(attempts).values(turn_id=turn_id, number=1, worker_id=ids[0], lane="x")
            )
            connection.execute(
                sa.insert(replies).values(
                    turn_id=turn_id, attempt=1, content=str(turn_id), finish_reason="stop",
                    prompt_tokens=1, completion_tokens=1,
                )
            )  # fmt: skip
    before = rows_of(engine)
    oids = table_oids(engine)
    upgrade(empty_database_url, "0003")
    assert rows_of(engine) == before
    assert table_oids(engine, "_before") == oids
    for table in PARTITIONED:
        assert rows_of(engine, f"{table}_default")[table][0].turn_id == ids[-1]
    downgrade(engine, configuration, "0002")
    assert rows_of(engine) == before


def test_only_the_operator_s_old_keys_keep_reading_metrics(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url, "0006")
    insert = """
        WITH t AS (INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), :name) RETURNING id)
        INSERT INTO api_keys (id, tenant_id, name, hint, digest)
        SELECT gen_random_uuid(), id, :name, '', convert_to(:name, 'UTF8') FROM t"""
    with engine.begin() as connection:
        for name in ("default", "acme"):
            connection.execute(sa.text(insert), {"name": name})
    upgrade(empty_database_url)
    with engine.begin() as connection:
        query = sa.text("SELECT name, 'metrics' = ANY(scopes) AS may_read FROM api_keys")
        may_read = {row.name: row.may_read for row in connection.execute(query)}
        assert may_read == {"default": True, "acme": False}


def rows_of(engine: sa.Engine, *tables: str) -> dict[str, Any]:
    """The rows of the partitioned tables, or of their partitions."""
    with engine.connect() as connection:
        return {
            table.partition("_")[0]: connection.execute(
                sa.text(f"SELECT * FROM {table} ORDER BY turn_id")
            ).all()
            for table in tables or PARTITIONED
        }


def table_oids(engine: sa.Engine, suffix: str = "") -> list[int]:
    with engine.connect() as connection:
        oid = sa.text("SELECT CAST(CAST(:name AS regclass) AS oid)")
        return [connection.execute(oid, {"name": t + suffix}).scalar_one() for t in PARTITIONED]


def storage(engine: sa.Engine) -> dict[str, set[str]]:
    """The storage parameters of each table that has some."""
    statement = (
        "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND reloptions <> '{}'"
    )
    with engine.connect() as connection:
        return {row.relname: set(row.reloptions) for row in connection.execute(sa.text(statement))}


def test_tables_that_change_with_each_turn_are_vacuumed_by_the_number_of_dead_rows(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url)
    found = storage(engine)
    hot = {"outbox", "chunks", "worker_liveness", "deliveries", "turns", "conversations"}
    months = {name for name in found if name.startswith("attempts_")}
    assert {"attempts_before", "attempts_default"} < months
    for table in hot | months:
        (factor,) = (each for each in found[table] if "vacuum_scale_factor" in each)
        assert float(factor.partition("=")[2]) <= 0.01, table


def test_a_month_made_later_is_stored_as_those_that_were_migrated(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url)
    later = Month(2999, 1)
    with engine.begin() as connection:
        for table in PARTITIONED:
            for statement in create_month(table, later):
                connection.execute(sa.text(statement))
    found = storage(engine)
    assert found[later.partition_of("attempts")] == found["attempts_default"]
    assert found.get(later.partition_of("replies")) == found.get("replies_default")


def test_the_storage_is_changed_while_turns_are_read_and_written(
    engine: sa.Engine, empty_database_url: str
) -> None:
    """It waits for no transaction of the lanes, and they wait for none of it."""
    upgrade(empty_database_url, "0027")
    with psycopg.connect(empty_database_url) as busy:
        for table in ("turns", "outbox", "attempts", "conversations"):
            busy.execute(f"SELECT * FROM {table} FOR UPDATE" if table != "attempts"
                         else "DELETE FROM attempts")  # fmt: skip
        upgrade(empty_database_url, "0028")
    assert "outbox" in storage(engine)


#: A tenant with two turns of a batch. Counting them waits for a lock.
_BATCH = """
CREATE FUNCTION slow_down() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    IF to_regclass('batch_moves') IS NOT NULL THEN
        ALTER TABLE batch_moves ADD
            CHECK (old_state IS NOT NULL OR pg_advisory_xact_lock_shared(1)::text = '');
    END IF;
END $$;
CREATE EVENT TRIGGER slow_down ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
EXECUTE FUNCTION slow_down();
INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'acme');
INSERT INTO turns
    (id, tenant_id, conversation_id, seq, bot_id, model, lane, state, input, params, batch_row,
     batch_id)
SELECT gen_random_uuid(), id, gen_random_uuid(), 1, gen_random_uuid(), 'm', 'batch', 'queued',
    '[]', '{}', number, '018f0000-0000-7000-8000-000000000000'
FROM tenants, generate_series(1, 2) AS number
"""
_ANOTHER = "UPDATE turns SET state = 'cancelled' WHERE batch_row = 1"
_COUNTED = """
SELECT state, sum(turns)::int FROM (
    SELECT new_state AS state, turns FROM batch_moves
    UNION ALL SELECT old_state, -turns FROM batch_moves WHERE old_state IS NOT NULL
) AS moved WHERE state <> 'running' GROUP BY state HAVING sum(turns) <> 0 ORDER BY state
"""

#: Statements of a migration that wait for somebody.
_WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s
"""


def end_when_it_waits(link: psycopg.Connection[Any], query: str, eventually: Any) -> None:
    """Terminate the session that runs such a statement, as soon as it waits."""
    eventually(lambda: link.execute(_WAITING, (query,)).fetchone())
    link.execute(f"SELECT pg_terminate_backend(pid) FROM ({_WAITING}) AS w", (query,))


def test_turns_change_while_those_of_before_are_counted(
    empty_database_url: str, eventually: Any
) -> None:
    upgrade(empty_database_url, "0019")
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(empty_database_url, autocommit=True) as link,
        psycopg.connect(empty_database_url) as busy,
    ):
        link.execute(_BATCH)
        link.execute("SET lock_timeout = '2s'")
        busy.execute("SELECT pg_advisory_xact_lock(1)")
        first = pool.submit(upgrade, empty_database_url, "0020")
        end_when_it_waits(link, "%INSERT INTO batch_moves%", eventually)
        with pytest.raises(DatabaseUnavailable):
            first.result(20)
        assert link.execute("SELECT version_num FROM alembic_version").fetchone() == ("0019",)
        again = pool.submit(upgrade, empty_database_url, "0020")
        eventually(lambda: link.execute(_WAITING, ("%INSERT INTO batch_moves%",)).fetchone())
        link.execute(_ANOTHER)
        busy.rollback()
        again.result(20)
        assert link.execute(_COUNTED).fetchall() == [("cancelled", 1), ("queued", 1)]


@pytest.mark.parametrize(
    ("revision", "tables"),
    [
        ("0023", ("turns", "deliveries")),
        ("0030", ("turns", "deliveries")),
        ("0033", ("turns", "deliveries")),
        ("0038", ("passages",)),
    ],
)
def test_tables_are_written_while_their_indexes_are_built(
    empty_database_url: str, revision: str, tables: tuple[str, ...], eventually: Any
) -> None:
    upgrade(empty_database_url, f"{int(revision) - 1:04}")
    invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(empty_database_url, autocommit=True) as link,
        psycopg.connect(empty_database_url) as reader,
    ):
        link.execute("SET lock_timeout = '2s'")
        # As `pg_dump` does: a build waits for its snapshot.
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT FROM tenants")
        first = pool.submit(upgrade, empty_database_url, revision)
        eventually(lambda: link.execute(_WAITING, ("CREATE INDEX CONC%",)).fetchone())
        for table in tables:
            link.execute(f"UPDATE {table} SET id = id")
        end_when_it_waits(link, "CREATE INDEX CONC%", eventually)
        with pytest.raises(DatabaseUnavailable):
            first.result(20)
        reader.rollback()
        assert link.execute(invalid).fetchone() == (1,)
        upgrade(empty_database_url, revision)
        assert link.execute(invalid).fetchone() == (0,)
        assert link.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)


def test_a_table_that_stays_locked_is_left_alone_and_the_next_try_resumes(
    empty_database_url: str,
) -> None:
    upgrade(empty_database_url, "0020")
    with psycopg.connect(empty_database_url) as busy:
        busy.execute("SELECT FROM batches")
        with pytest.raises(DatabaseUnavailable, match="run this again"):
            upgrade(empty_database_url, "0022")
        version = busy.execute("SELECT version_num FROM alembic_version").fetchone()
        assert version == ("0021",)
    upgrade(empty_database_url, "0022")


#: A migration of `turns` locks `bots` first.
_SECOND_LOCK = """
CREATE FUNCTION lock_bots() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    LOCK TABLE bots;
END $$;
CREATE EVENT TRIGGER lock_bots ON ddl_command_start WHEN TAG IN ('ALTER TABLE')
EXECUTE FUNCTION lock_bots()
"""
_AWAITED = "SELECT 1 FROM pg_locks WHERE relation = 'turns'::regclass AND NOT granted"


def test_a_migration_that_loses_a_deadlock_is_run_again(
    empty_database_url: str, eventually: Callable[..., None]
) -> None:
    upgrade(empty_database_url, "0020")
    with (
        psycopg.connect(empty_database_url, autocommit=True) as observer,
        psycopg.connect(empty_database_url) as worker,
        ThreadPoolExecutor() as threads,
    ):
        observer.execute(_SECOND_LOCK)
        observer.execute(f"ALTER DATABASE {observer.info.dbname} SET deadlock_timeout = '2s'")
        # The other side looks for a deadlock later, so that the migration is who loses.
        worker.execute("SET deadlock_timeout = '1min'; SELECT FROM turns")
        upgraded = threads.submit(upgrade, empty_database_url, "0021")
        eventually(lambda: observer.execute(_AWAITED).fetchone(), 10, 0.01)
        worker.execute("SELECT FROM bots")
        worker.commit()
        upgraded.result(60)
        assert observer.execute("SELECT version_num FROM alembic_version").fetchone() == ("0021",)


def test_adding_the_time_of_documents_rewrites_none(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url, "0034")
    where = sa.text("SELECT pg_relation_filenode('documents')")
    with engine.connect() as connection:
        before = connection.execute(where).scalar_one()
    upgrade(empty_database_url, "0035")
    with engine.connect() as connection:
        assert connection.execute(where).scalar_one() == before


def test_a_database_of_a_later_release_stays_as_it_is(
    engine: sa.Engine, empty_database_url: str
) -> None:
    upgrade(empty_database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    upgrade(empty_database_url)
    with engine.connect() as connection:
        assert current_revision(connection) == "9999"

"""The doctor: each thing that keeps an installation from working is named, with the way out."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from kombu import Connection, Queue

from tests.conftest import require_rabbitmq
from turnmill.infra.chaos.breaking.faults import memory_alarm
from turnmill.infra.chaos.topologies.postgres_pair import PostgresPair
from turnmill.infra.chaos.topologies.rabbitmq_cluster import RabbitMQCluster
from turnmill.infra.embedded.folder import server_uid
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.rabbitmq import EmbeddedRabbitMQ
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.infra.migrations import head_revision, upgrade
from turnmill.producer import doctor
from turnmill.producer.accept import accept
from turnmill.producer.doctor import (
    Finding,
    Level,
    broker,
    clock,
    configuration,
    diagnose,
    installation,
)
from turnmill.producer.doctor.blocking import check_blocking
from turnmill.producer.doctor.broker_amqp import confirms
from turnmill.producer.doctor.findings import examine
from turnmill.producer.operations.unreached import remedy_for
from turnmill.producer.tenants import ensure_defaults
from turnmill.schemas.broker import hint_queues
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import STACK_FILE, Settings, load_settings
from turnmill.schemas.store.fleet.deployment import Deployment, read_deployment
from turnmill.schemas.store.tables import PRUNER_LOCK_KEY, RESCUER_LOCK_KEY
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.app import create_app
from turnmill.workers.consumer.main import run_worker
from turnmill.workers.engines.registry import ENGINES

pytestmark = pytest.mark.usefixtures("brief_doctor")

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No stack of this machine is found."""
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def configure(database_url: str, broker_url: str) -> None:
        monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
        monkeypatch.setenv("TURNMILL_BROKER__URL", broker_url)

    return configure


@pytest.fixture
def rabbitmq_api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The management API listens where the settings say."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or parameters.params.get("broker_url") == "rabbitmq":
        server: EmbeddedRabbitMQ = request.getfixturevalue("rabbitmq")
        url = server.management_url
        monkeypatch.setenv("TURNMILL_BROKER__MANAGEMENT_URL", url)


@pytest.fixture(scope="module")
def durable_url(make_server_folder: Callable[[], Path]) -> Iterator[str]:
    """A migrated database that keeps what it confirms; the other tests' does not."""
    with EmbeddedPostgres(make_server_folder()) as server:
        upgrade(server.url)
        yield server.url


def found(what: str, findings: Sequence[Finding] = ()) -> Finding:
    """The one finding of this name."""
    (finding,) = [finding for finding in findings or diagnose() if finding.what == what]
    return finding


def test_a_healthy_installation_has_nothing_to_mend_and_its_servers_are_told(
    servers: Callable[[str, str], None], durable_url: str, broker_url: str, rabbitmq_api: None
) -> None:
    servers(durable_url, broker_url)
    findings = diagnose(head_revision())
    assert [f for f in findings if f.level in (Level.WARNING, Level.BROKEN)] == []
    assert {"turnmill", "engines"} <= {finding.what for finding in findings}
    assert found("database", findings).detail.startswith("PostgreSQL 1")
    kind = "amqp" if broker_url.startswith("amqp") else "redis"
    assert found("broker", findings).detail == kind


def test_wrong_settings_end_the_examination_and_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_WORKER__LEASE", "3")
    findings = diagnose()
    assert [finding.what for finding in findings] == ["turnmill", "settings"]
    assert findings[-1].level is Level.BROKEN
    assert "TURNMILL_WORKER__LEASE_S" in findings[-1].detail


def test_without_any_server_it_says_how_to_get_some() -> None:
    finding = found("servers")
    assert finding.level is Level.NOTE
    assert "turnmill up" in finding.fix
    assert "TURNMILL_DATABASE__URL" in finding.fix


def test_a_running_stack_is_examined(data: Path, database_url: str, valkey_url: str) -> None:
    settings = {"database": {"url": database_url}, "broker": {"url": valkey_url}}
    (data / STACK_FILE).write_text(json.dumps({"settings": settings}))
    findings = diagnose()
    assert found("database", findings).level is Level.OK
    assert found("broker", findings).level is Level.OK


def test_a_database_that_does_not_answer_is_broken(servers: Callable[[str, str], None]) -> None:
    servers(f"postgresql://u:hunter2@{NOWHERE}/db", f"redis://:hunter2@{NOWHERE}/0")
    findings = diagnose()
    finding = found("database", findings)
    assert finding.level is Level.BROKEN
    assert "unavailable" in finding.detail
    assert not any("hunter2" in finding.detail for finding in findings)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/db", "postgresql://u:hunter2@h:port/db"])
def test_a_database_url_that_is_none_is_a_finding(
    servers: Callable[[str, str], None], valkey_url: str, url: str
) -> None:
    servers(url, valkey_url)
    finding = found("settings")
    assert finding.level is Level.BROKEN
    assert "TURNMILL_DATABASE__URL" in finding.detail
    assert "hunter2" not in finding.detail


def test_a_wrong_password_is_a_finding(
    servers: Callable[[str, str], None], database_url: str, valkey_url: str
) -> None:
    user, _, rest = database_url.partition("@")
    servers(f"{user}hunter2@{rest}", valkey_url)
    finding = found("database")
    assert "password" in finding.detail
    assert "login in TURNMILL_DATABASE__URL" in finding.fix
    assert "hunter2" not in finding.detail


def test_a_database_that_does_not_exist_says_what_helps(
    servers: Callable[[str, str], None], empty_database_url: str, valkey_url: str
) -> None:
    name = empty_database_url.partition("?")[0].rpartition("/")[2]
    servers(empty_database_url.replace(name, "nobody_made_it"), valkey_url)
    assert "Create the database" in found("database").fix


def test_a_server_without_a_connection_left_says_what_helps(
    servers: Callable[[str, str], None], durable_url: str, valkey_url: str
) -> None:
    servers(durable_url, valkey_url)
    with ExitStack() as taken:
        with suppress(psycopg.OperationalError):
            while True:
                taken.enter_context(psycopg.connect(durable_url))
        finding = found("database")
    assert finding.level is Level.BROKEN
    assert "max_connections" in finding.fix


def test_a_standby_is_broken_and_the_primary_is_asked_for(
    servers: Callable[[str, str], None], server_folder: Path, valkey_url: str
) -> None:
    pair = PostgresPair(server_folder)
    try:
        pair.start()
        servers(pair.standby.url, valkey_url)
        finding = found("database")
    finally:
        pair.stop(hurry=True)
    assert finding.level is Level.BROKEN
    assert "is a standby" in finding.detail
    assert "target_session_attrs=read-write" in finding.fix
    said = "cannot execute INSERT in a read-only transaction"
    assert "target_session_attrs" in remedy_for(said)


def test_who_holds_a_lock_that_others_wait_for_is_named(
    servers: Callable[[str, str], None],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
) -> None:
    servers(database_url, valkey_url)
    assert "locks held" not in [finding.what for finding in diagnose()]
    with (
        psycopg.connect(database_url, application_name="colleague") as holder,
        psycopg.connect(database_url) as waiter,
        closing(Database(load_settings().database)) as looking,
        ThreadPoolExecutor() as pool,
    ):
        holder.execute("LOCK TABLE turns IN ACCESS EXCLUSIVE MODE")
        waiting = pool.submit(waiter.execute, "SELECT count(*) FROM turns")
        try:
            eventually(lambda: list(check_blocking(looking)))
            (finding,) = check_blocking(looking)
            assert f"process {holder.info.backend_pid} (colleague" in finding.detail
        finally:
            holder.rollback()
            waiting.result()
        assert list(check_blocking(looking)) == []
    assert finding.level is Level.BROKEN
    assert "1 sessions wait" in finding.detail
    assert "pg_terminate_backend" in finding.fix


def test_missing_tables_are_found_with_the_command_that_makes_them(
    servers: Callable[[str, str], None], empty_database_url: str, valkey_url: str
) -> None:
    servers(empty_database_url, valkey_url)
    findings = diagnose()
    assert found("database", findings).level is Level.OK
    finding = found("tables", findings)
    assert (finding.level, finding.detail) == (Level.BROKEN, "missing")
    assert finding.fix == "turnmill db upgrade"


def test_tables_of_another_release_are_found(
    servers: Callable[[str, str], None], database_url: str, valkey_url: str
) -> None:
    servers(database_url, valkey_url)
    behind = found("tables", diagnose("9999"))
    assert (behind.level, behind.fix) == (Level.BROKEN, "turnmill db upgrade")
    assert found("tables", diagnose("0000")).level is Level.NOTE


@pytest.mark.parametrize("url", [f"redis://{NOWHERE}/0", f"amqp://a:hunter2@{NOWHERE}//"])
def test_a_broker_that_does_not_answer_is_broken(
    servers: Callable[[str, str], None], database_url: str, url: str
) -> None:
    servers(database_url, url)
    finding = found("broker")
    assert finding.level is Level.BROKEN
    assert "refused" in finding.detail
    assert "hunter2" not in finding.detail


def test_a_wrong_broker_password_is_a_finding_that_does_not_show_it(
    servers: Callable[[str, str], None], database_url: str, broker_url: str
) -> None:
    credentials, _, host = broker_url.rpartition("@")
    user = credentials.rpartition(":")[0]
    servers(database_url, f"{user}:hunter2@{host}")
    finding = found("broker")
    assert finding.level is Level.BROKEN
    assert "hunter2" not in finding.detail


def test_no_two_checks_share_a_name() -> None:
    modules = [
        import_module(f"{doctor.__name__}.{each.name}") for each in iter_modules(doctor.__path__)
    ]
    tables = [
        table
        for module in modules
        for name, table in vars(module).items()
        if name.isupper() and isinstance(table, dict) and all(map(callable, table.values()))
    ]
    names = [name for table in tables for name in table]
    assert {"engines", "engines away"} <= set(names)
    assert len(names) == len(set(names))


def test_doctor_looks_for_the_library_of_every_engine() -> None:
    assert {*installation.ENGINE_PACKAGES} == {*ENGINES} - {"echo"}


def test_missing_engines_and_a_missing_stack_are_noted_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(package: str) -> str:
        if package == "turnmill":
            return "0"
        raise PackageNotFoundError(package)

    def find_spec(name: str) -> Any:
        return None

    monkeypatch.setattr(installation, "version", version)
    monkeypatch.setattr(installation, "find_spec", find_spec)
    findings = diagnose()
    assert found("engines", findings).level is Level.NOTE
    assert "pip install 'turnmill[openvino]'" in found("engines", findings).fix
    assert "pip install 'turnmill[embedded]'" in found("embedded stack", findings).fix


def test_a_visibility_timeout_below_the_longest_turn_is_refused_by_doctor_and_worker_alike(
    servers: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers(f"postgresql://u@{NOWHERE}/db", f"redis://{NOWHERE}/0")
    monkeypatch.setenv("TURNMILL_BROKER__VISIBILITY_TIMEOUT_S", "330")
    finding = found("visibility timeout")
    assert finding.level is Level.BROKEN
    with pytest.raises(SettingsError) as refused:
        run_worker(load_settings())
    assert refused.value.message == finding.detail
    monkeypatch.setenv("TURNMILL_BROKER__VISIBILITY_TIMEOUT_S", "331")
    assert not any(finding.what == "visibility timeout" for finding in diagnose())


def test_celery_variables_that_overrule_ours_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere")
    finding = found("celery")
    assert finding.level is Level.BROKEN
    assert "CELERY_BROKER_URL" in finding.detail


def test_a_celeryconfig_on_the_python_path_is_neither_read_nor_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "celeryconfig.py").write_text("broker_url = 'redis://elsewhere'\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = load_settings(broker={"url": f"redis://{NOWHERE}/0"})
    app = create_app(settings, Deployment(new_id()))
    assert app.conf.broker_url == settings.broker.url.get_secret_value()
    assert "celeryconfig" not in sys.modules
    assert "celery" not in {finding.what for finding in diagnose()}


@pytest.mark.parametrize(
    ("what", "variable", "value", "level"),
    [
        ("database password", "DATABASE__URL", "postgresql://u:postgres@db/t", Level.BROKEN),
        ("database password", "DATABASE__URL", "postgresql://u:test@127.0.0.1/t", Level.WARNING),
        ("database password", "DATABASE__URL", "postgresql://u@127.0.0.1,db2/t", Level.NOTE),
        ("broker password", "BROKER__URL", "amqp://guest:guest@rabbit//", Level.BROKEN),
        ("broker password", "BROKER__URL", "amqp://turnmill:turnmill@rabbit//", Level.BROKEN),
        ("broker password", "BROKER__URL", "redis://valkey:6379/0", Level.BROKEN),
        ("broker password", "BROKER__URL", "sentinel://:redis@localhost:26379", Level.WARNING),
        ("flower", "FLOWER__PASSWORD", "short", Level.WARNING),
        ("flower", "FLOWER__HOST", "0.0.0.0", Level.WARNING),
        ("api", "API__HOST", "0.0.0.0", Level.NOTE),
    ],
)
def test_open_doors_and_passwords_that_everybody_knows_are_found(
    monkeypatch: pytest.MonkeyPatch, what: str, variable: str, value: str, level: Level
) -> None:
    monkeypatch.setenv("TURNMILL_BROKER__SENTINEL_PRIMARY", "main")
    monkeypatch.setenv(f"TURNMILL_{variable}", value)
    findings = list(examine(configuration.CHECKS, load_settings()))
    assert found(what, findings).level is level
    assert (what == "api") or found(what, findings).fix


def test_a_weak_password_of_a_flower_open_to_the_world_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_FLOWER__HOST", "0.0.0.0")
    monkeypatch.setenv("TURNMILL_FLOWER__PASSWORD", "turnmill")
    levels = [finding.level for finding in diagnose() if finding.what == "flower"]
    assert levels == [Level.BROKEN, Level.WARNING]


def test_a_sentinel_that_does_not_answer_is_a_finding_and_no_crash(
    servers: Callable[[str, str], None], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_BROKER__SENTINEL_PRIMARY", "main")
    servers(database_url, f"sentinel://{NOWHERE}")
    assert found("broker").level is Level.BROKEN


def test_a_database_that_forgets_what_it_confirmed_is_broken(
    servers: Callable[[str, str], None], database_url: str, valkey_url: str
) -> None:
    servers(database_url, valkey_url)
    findings = [finding for finding in diagnose() if finding.what == "durability"]
    assert [finding.detail.split()[0] for finding in findings] == [
        "fsync",
        "full_page_writes",
    ]
    assert {finding.level for finding in findings} == {Level.BROKEN}


def test_a_synchronous_standby_is_missed_where_one_is_wanted(
    servers: Callable[[str, str], None],
    durable_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(durable_url, valkey_url)
    assert not any(finding.what == "standby" for finding in diagnose())
    monkeypatch.setenv("TURNMILL_DATABASE__REQUIRE_STANDBY", "true")
    assert "no synchronous standby" in found("standby").detail
    monkeypatch.delenv("TURNMILL_DATABASE__REQUIRE_STANDBY")
    login, _, rest = durable_url.rpartition("@")
    address, _, name = rest.partition("/")
    servers(f"{login}@{address},{address}/{name}", valkey_url)
    assert found("standby").level is Level.BROKEN


def test_a_standby_that_every_commit_waits_for_is_found(
    servers: Callable[[str, str], None],
    durable_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    servers(durable_url, valkey_url)
    monkeypatch.setenv("TURNMILL_DATABASE__REQUIRE_STANDBY", "true")
    with psycopg.connect(durable_url, autocommit=True) as link:
        link.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        link.execute("SELECT pg_reload_conf()")
        try:
            eventually(lambda: "every commit waits" in found("standby").detail)
        finally:
            link.execute("ALTER SYSTEM RESET synchronous_standby_names")
            link.execute("SELECT pg_reload_conf()")


def test_pools_larger_than_the_server_allows_are_found(
    servers: Callable[[str, str], None],
    database_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(database_url, valkey_url)
    monkeypatch.setenv("TURNMILL_DATABASE__POOL_SIZE", "100")
    finding = found("connections")
    assert finding.level is Level.WARNING
    assert "max_connections" in finding.fix


def test_clocks_that_differ_are_found_on_both_servers(
    servers: Callable[[str, str], None],
    database_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(database_url, valkey_url)
    true_time = clock.local_time
    monkeypatch.setattr(clock, "local_time", lambda: true_time() - 3)
    findings = diagnose()
    for what in ("clock", "broker clock"):
        assert found(what, findings).level is Level.WARNING
        assert "ahead of" in found(what, findings).detail
    monkeypatch.setattr(clock, "local_time", lambda: true_time() + 3)
    assert "behind" in found("clock").detail


def test_a_valkey_that_forgets_or_evicts_is_found(
    servers: Callable[[str, str], None], database_url: str, valkey_url: str
) -> None:
    servers(database_url, valkey_url)
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            findings = diagnose()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")
    assert found("persistence", findings).level is Level.WARNING
    assert found("eviction", findings).level is Level.BROKEN


class ClusterValkey(EmbeddedValkey):
    """One node with no slots, which is all it takes to be refused."""

    def _prepare(self) -> None:
        super()._prepare()
        text = self._config_path.read_text()
        text += f"cluster-enabled yes\ncluster-port {self.port + 1}\n"
        self.folder.write_private(self._config_path.name, text, uid=server_uid())


def test_a_redis_cluster_is_refused(
    servers: Callable[[str, str], None], database_url: str, server_folder: Path
) -> None:
    with ClusterValkey(server_folder) as node:
        servers(database_url, node.url)
        assert found("redis cluster").level is Level.BROKEN


def test_a_broker_without_publisher_confirms_is_broken() -> None:
    (finding,) = confirms({"product": "Other", "capabilities": {"basic.nack": True}})
    assert finding.level is Level.BROKEN
    assert list(confirms({"capabilities": {"publisher_confirms": True}})) == []


def queues(settings: Settings, *lanes: Lane) -> list[Queue]:
    with closing(Database(settings.database)) as database:
        deployment = read_deployment(database).id
    return hint_queues(settings.broker, lanes, settings.engine.model_name, deployment)


def test_a_classic_queue_in_the_place_of_ours_is_found_and_none_is_made(
    servers: Callable[[str, str], None], database_url: str, rabbitmq_vhost_url: str
) -> None:
    servers(database_url, rabbitmq_vhost_url)
    settings = load_settings()
    ours, *others = queues(settings, *Lane)
    with Connection(rabbitmq_vhost_url) as connection:
        Queue(ours.name, routing_key=ours.name)(connection.channel()).declare()
        finding = found("queues")
        assert finding.level is Level.BROKEN
        assert ours.name in finding.detail
        assert ours.name in finding.fix
        for queue in others:
            with pytest.raises(connection.channel_errors):
                queue(connection.channel()).queue_declare(passive=True)


def test_a_turn_longer_than_the_consumer_timeout_is_found(
    servers: Callable[[str, str], None],
    database_url: str,
    rabbitmq_vhost_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(database_url, rabbitmq_vhost_url)
    assert found("consumer timeout").level is Level.NOTE
    monkeypatch.setenv("TURNMILL_WORKER__TURN_TIMEOUT_S", "1900")
    finding = found("consumer timeout")
    assert finding.level is Level.WARNING
    assert "rabbitmq.conf" in finding.fix


def test_a_queue_whose_own_consumer_timeout_is_too_short_is_found(
    servers: Callable[[str, str], None],
    database_url: str,
    rabbitmq_vhost_url: str,
    rabbitmq_api: None,
    eventually: Callable[..., None],
) -> None:
    servers(database_url, rabbitmq_vhost_url)
    settings = load_settings()
    (queue,) = queues(settings, Lane.BATCH)
    queue.queue_arguments = {"x-consumer-timeout": 60_000}
    with Connection(rabbitmq_vhost_url) as connection:
        queue(connection.channel()).declare()
    eventually(lambda: found("consumer timeout").level is Level.BROKEN)
    assert found("consumer timeout").detail.startswith("60 s")


def test_a_memory_alarm_is_found(
    servers: Callable[[str, str], None],
    database_url: str,
    rabbitmq: EmbeddedRabbitMQ,
    rabbitmq_api: None,
    eventually: Callable[..., None],
) -> None:
    servers(database_url, rabbitmq.url)
    with memory_alarm(rabbitmq):
        eventually(lambda: any("mem_alarm" in f.detail for f in diagnose()), 60)
        assert found("cluster").level is Level.BROKEN


def test_what_helps_against_a_refused_login_or_a_missing_virtual_host_is_said(
    servers: Callable[[str, str], None],
    database_url: str,
    valkey: EmbeddedValkey,
    rabbitmq: EmbeddedRabbitMQ,
) -> None:
    for server in (valkey, rabbitmq):
        secret = str(urlsplit(server.url).password)
        servers(database_url, server.url.replace(secret, "hunter2"))
        finding = found("broker")
        assert "login in TURNMILL_BROKER__URL" in finding.fix
        assert "hunter2" not in finding.detail
    servers(database_url, rabbitmq.vhost_url("nobody_made_it"))
    assert "rabbitmqctl add_vhost" in found("broker").fix


def test_a_broker_that_confirms_nothing_is_broken_without_its_management_api(
    servers: Callable[[str, str], None],
    database_url: str,
    rabbitmq: EmbeddedRabbitMQ,
    eventually: Callable[..., None],
) -> None:
    """RabbitMQ takes one message of each connection during an alarm, and answers nothing then."""
    servers(database_url, rabbitmq.url)
    names = [finding.what for finding in diagnose()]
    assert "publishing" not in names
    with memory_alarm(rabbitmq):
        eventually(lambda: "publishing" in [f.what for f in diagnose()], 60)
        finding = found("publishing")
    assert finding.level is Level.BROKEN
    assert "rabbitmq-diagnostics alarms" in finding.fix


@pytest.mark.parametrize(
    ("change", "back", "said", "fix"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"),
         "maxmemory", "CONFIG SET maxmemory"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read only", "the primary"),
        (("CONFIG", "SET", "min-replicas-to-write", "1"),
         ("CONFIG", "SET", "min-replicas-to-write", "0"), "NOREPLICAS", "mend what it says"),
    ],
)  # fmt: skip
def test_a_valkey_that_takes_no_hints_is_broken_and_says_why(
    servers: Callable[[str, str], None],
    database_url: str,
    valkey_url: str,
    change: tuple[str, ...],
    back: tuple[str, ...],
    said: str,
    fix: str,
) -> None:
    servers(database_url, valkey_url)
    assert "writing" not in [finding.what for finding in diagnose()]
    with redis.Redis.from_url(valkey_url) as client:
        client.execute_command(*change)
        try:
            findings = diagnose()
        finally:
            client.execute_command(*back)
    finding = found("writing", findings)
    assert finding.level is Level.BROKEN
    assert said in finding.detail
    assert fix in finding.fix
    assert "worker pools" not in [finding.what for finding in findings], "asked through the broker"


def test_live_workers_that_take_no_hints_are_told_from_none(
    servers: Callable[[str, str], None], make_system: Callable[..., Any], database_url: str,
    valkey_url: str,
) -> None:  # fmt: skip
    servers(database_url, valkey_url)
    system = make_system(database_url, valkey_url)
    accept(system.database, system.request("hello"))
    system.database.run("UPDATE outbox SET due_at = clock_timestamp() - interval '1 min'")
    assert "turnmill worker" in found("workers").fix
    system.database.run(
        "INSERT INTO worker_liveness (id, lock_key, host, pid, model, engine, lanes, slots, "
        "is_consuming) SELECT gen_random_uuid(), 7, 'here', 7, model, 'echo', "
        "'{interactive}', 8, false FROM outbox"
    )
    finding = next(f for f in diagnose() if f.detail.startswith("none consumes"))
    assert "1 live and take no hints" in finding.detail
    assert "turnmill worker" not in finding.fix


def test_a_queue_that_one_node_of_a_cluster_takes_along_is_found(
    servers: Callable[[str, str], None],
    database_url: str,
    server_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    require_rabbitmq()
    with RabbitMQCluster(server_folder) as cluster:
        servers(database_url, cluster.url)
        monkeypatch.setenv("TURNMILL_BROKER__MANAGEMENT_URL", cluster.management_url)
        settings = load_settings()
        (queue,) = queues(settings, Lane.BATCH)
        queue.queue_arguments |= {"x-quorum-initial-group-size": 1}
        with Connection(cluster.url) as connection:
            queue(connection.channel()).declare()
        eventually(lambda: found("cluster").level is Level.WARNING, 60)
        assert queue.name in found("cluster").detail


def test_a_management_api_that_does_not_answer_is_a_note(
    servers: Callable[[str, str], None],
    database_url: str,
    rabbitmq_vhost_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(database_url, rabbitmq_vhost_url)
    monkeypatch.setenv("TURNMILL_BROKER__MANAGEMENT_URL", f"http://{NOWHERE}")
    assert found("cluster").level is Level.NOTE


_FOREIGN_WORKER = """
import sys
from celery import Celery
app = Celery("foreign", broker=sys.argv[1], set_as_current=False)
app.conf.worker_prefetch_multiplier = 4
app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--without-gossip",
                 "--without-mingle", "--loglevel=error"])
"""


@contextmanager
def foreign_worker(broker_url: str) -> Iterator[None]:
    worker = subprocess.Popen([sys.executable, "-c", _FOREIGN_WORKER, broker_url])
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(30)


def test_a_worker_that_forks_and_hoards_is_found(
    servers: Callable[[str, str], None],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(database_url, valkey_url)
    monkeypatch.setattr(broker, "INSPECT_S", 1.0)

    def levels() -> list[Level]:
        return [finding.level for finding in diagnose() if finding.what == "worker pools"]

    assert levels() == []
    with foreign_worker(valkey_url):
        eventually(lambda: levels() == [Level.BROKEN, Level.WARNING], 60)


@pytest.fixture
def stuck(make_system: Any, database_url: str, valkey_url: str, servers: Any) -> Any:
    """A system with one turn that has been due for five minutes; nothing runs."""
    servers(database_url, valkey_url)
    system = make_system(database_url, valkey_url)
    accept(system.database, system.request("anybody there?"))
    age = "clock_timestamp() - interval '5 minutes'"
    system.database.run(f"UPDATE outbox SET due_at = {age}")
    system.database.run(f"UPDATE turns SET accepted_at = {age}")
    return system


def test_turns_that_nobody_publishes_consumes_or_answers_are_found(stuck: Any) -> None:
    findings = diagnose()
    assert found("relay", findings).level is Level.BROKEN
    assert "turnmill relay" in found("relay", findings).fix
    assert found("workers", findings).level is Level.BROKEN
    assert "interactive" in found("workers", findings).detail
    assert found("oldest turn", findings).level is Level.WARNING
    assert "5 min" in found("oldest turn", findings).detail


@pytest.mark.parametrize(
    ("key", "part"), [(RESCUER_LOCK_KEY, "rescuer"), (PRUNER_LOCK_KEY, "pruner")]
)
def test_a_program_that_holds_a_lock_of_ours_is_found(
    stuck: Any, key: int, part: str, eventually: Callable[..., None]
) -> None:
    with stuck.database.connect() as other:
        assert not any(finding.what == "locks" for finding in diagnose())
        other.execute("SELECT pg_advisory_lock(%s)", (key,))
        eventually(lambda: any(finding.what == "locks" for finding in diagnose()))
        finding = found("locks")
        assert finding.level is Level.BROKEN
        assert part in finding.detail
        assert str(other.info.backend_pid) in finding.fix


def test_a_full_window_is_no_dead_relay(stuck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(stuck.database, stuck.request("and I?"))
    stuck.database.run("UPDATE outbox SET published_at = clock_timestamp() WHERE due_at > "
                       "clock_timestamp() - interval '1 minute'")  # fmt: skip
    monkeypatch.setenv("TURNMILL_RELAY__WINDOW", "1")
    assert not any(finding.what == "relay" for finding in diagnose())


def test_a_live_worker_serves_its_lane_and_a_quarantine_without_one_is_noted(stuck: Any) -> None:
    stuck.database.run(
        "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots) "
        "VALUES (%s, 'here', 1, %s, 'echo', '{interactive,batch}', 1)",
        (new_id(), stuck.settings.engine.model_name),
    )
    finding = found("workers")
    assert finding.level is Level.NOTE
    assert "quarantine" in finding.detail


@pytest.mark.parametrize(("hits", "is_noted"), [(44, True), (45, False)])
def test_conversations_that_often_lose_their_worker_are_noted(
    stuck: Any, hits: int, is_noted: bool
) -> None:
    stuck.database.run(
        "INSERT INTO attempts (turn_id, number, worker_id, lane, is_warm) "
        "SELECT id, 1, id, 'interactive', n <= %s "
        "FROM unnest(%s::uuid[]) WITH ORDINALITY AS i (id, n)",
        (hits, [new_id() for _ in range(50)]),
    )
    findings = [finding for finding in diagnose() if finding.what == "affinity"]
    assert ["44 of 50" in finding.detail for finding in findings] == [True] * is_noted


def test_parked_turns_are_noted(stuck: Any) -> None:
    stuck.database.run("UPDATE turns SET state = 'parked'")
    finding = found("parked turns")
    assert (finding.level, finding.fix) == (Level.NOTE, "turnmill parked list")


def test_conversations_that_people_answer_are_noted(stuck: Any) -> None:
    stuck.database.run("UPDATE conversations SET handed_off_at = now() - interval '5 hours'")
    finding = found("conversations")
    assert finding.level is Level.NOTE
    assert "the first for 300 min" in finding.detail
    assert "turnmill conversations list" in (finding.fix or "")


def test_hints_in_the_broker_without_a_consumer_are_found(
    servers: Callable[[str, str], None], system: Any, eventually: Callable[..., None]
) -> None:
    servers(
        system.settings.database.url.get_secret_value(),
        system.settings.broker.url.get_secret_value(),
    )
    system.start("relay")
    accept(system.database, system.request("hello"))
    eventually(lambda: "consumers" in {finding.what for finding in diagnose()}, 30)
    finding = found("consumers")
    assert finding.level is Level.BROKEN
    assert "1 hints of lane interactive" in finding.detail
    system.start_worker()
    system.wait_until_settled()
    eventually(lambda: "consumers" not in {finding.what for finding in diagnose()}, 30)


def test_a_worker_that_says_it_consumes_without_a_consumer_at_the_broker_is_found(
    servers: Callable[[str, str], None],
    make_system: Callable[..., Any],
    database_url: str,
    rabbitmq_vhost_url: str,
) -> None:
    system = make_system(database_url, rabbitmq_vhost_url)
    servers(database_url, rabbitmq_vhost_url)
    system.database.run(
        "INSERT INTO worker_liveness (id, host, pid, model, engine, lanes, slots) "
        "VALUES (%s, 'gone', 1, %s, 'echo', '{interactive}', 8)",
        (new_id(), system.settings.engine.model_name),
    )
    finding = found("consumers")
    assert finding.level is Level.BROKEN
    assert "the broker has no consumer of turns.interactive" in finding.detail


# Channels


def test_a_wrong_channel_a_missing_secret_and_a_missing_bot_are_named(
    data: Path,
    servers: Callable[[str, str], None],
    database_url: str,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers(database_url, valkey_url)
    settings = load_settings()
    with closing(Database(settings.database)) as database:
        ensure_defaults(database, settings)
    file = data / "turnmill.toml"
    file.write_text(
        '[channels.desk]\nkind = "webhook"\nbot = "nobody"\nurl = "https://desk.example"\n'
        'secret = { env = "DESK_SECRET" }\n'
    )
    monkeypatch.delenv("DESK_SECRET", raising=False)
    finding = found("channels")
    assert (finding.level, "variable DESK_SECRET" in finding.detail) == (Level.BROKEN, True)
    monkeypatch.setenv("DESK_SECRET", "whsec_" + "ab" * 16)
    findings = diagnose()
    assert [each for each in findings if each.what == "channels"] == []
    finding = found("bots of channels", findings)
    assert "channels.desk: the tenant default has no bot 'nobody'" in finding.detail
    assert "turnmill channels apply" in finding.fix
    file.write_text(file.read_text().replace("secret =", "secrt ="))
    assert "Did you mean secret?" in found("channels").detail

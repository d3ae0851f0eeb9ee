"""URLs of databases and brokers: those of others are refused, without a word of what they hold."""

import traceback

import pytest

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import load_settings

SECRET = "hunter2hunter2"  # noqa: S105 - stands for one


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss@host:5432/db",
        "postgres://u@host/db?sslmode=require&options=-csearch_path%3Dapp",
        "postgresql://u:p@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql://u:p@[::1]:5432,[fe80::1%25eth0]/db",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://u@%2Frun%2Fpostgresql/db",
    ],
)
def test_what_libpq_reads_is_taken(url: str) -> None:
    database = load_settings(database={"url": url, "direct_url": url}).database
    assert database.url.get_secret_value() == database.session_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:p@host:5672//",
        "amqps://u:p@one/v;amqps://u:p@two/v",
        "pyamqp://host",
        "amqp://u:p@[::1]:5672//",
        "redis://:p@host:6379/0",
        "rediss://u:p@host/1",
        "redis+socket:///run/redis.sock",
    ],
)
def test_brokers_of_ours_are_taken(url: str) -> None:
    assert load_settings(broker={"url": url}).broker.url.get_secret_value() == url


@pytest.mark.parametrize("field", ["url", "direct_url"])
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("  ", "is empty"),
        (f"postgresql://u:{SECRET}@host/db?schema=public", "'schema'"),
        (f"postgresql://u:{SECRET}@host/db?pgbouncer=true", "'pgbouncer'"),
        (f"postgresql+asyncpg://u:{SECRET}@host/db", "driver"),
        (f"jdbc:postgresql://host/db?user=u&password={SECRET}", "driver"),
        (f"mysql://u:{SECRET}@host/db", "postgresql://"),
        (f"host=here user=u password={SECRET}", "postgresql://"),
        (f"postgresql://u:{SECRET}@::1:5432/db", "brackets"),
        (f"postgresql://u:{SECRET}@[::1]:5432,fe80::1:5433/db", "brackets"),
        (f"postgresql://u:{SECRET}@host:port/db", "host or port"),
        (f"postgresql://u:{SECRET}%zz@host/db", "percent-encoded"),
        (f"postgresql://u:{SECRET}\udcff@host/db", "percent-encoded"),
    ],
)
def test_other_urls_of_a_database_are_refused(field: str, url: str, named: str) -> None:
    assert_refused(f"TURNMILL_DATABASE__{field.upper()}", named, database={field: url})


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "is empty"),
        (f"amqp://u:{SECRET}@one//;", "is empty"),
        ("memory://", "amqp://"),
        (f"rabbit://u:{SECRET}@host", "amqp://"),
        (f"rabbitmq://u:{SECRET}@host", "amqp://"),
        (f"valkey://:{SECRET}@host/0", "redis://"),
        (f"sqs://{SECRET}@", "amqp://"),
        ("amqp://", "no host"),
        (f"redis://:{SECRET}@/0", "no host"),
        (f"amqp://u:{SECRET}@one,two//", "joined with ;"),
        (f"redis://:{SECRET}@::1:6379/0", "brackets"),
        (f"amqp://u:{SECRET}@host:port//", "host or port"),
        (f"amqp://u:{SECRET}@one//;redis://:{SECRET}@two/0", "different kinds"),
    ],
)
def test_other_urls_of_a_broker_are_refused(url: str, named: str) -> None:
    assert_refused("TURNMILL_BROKER__URL", named, broker={"url": url})


def assert_refused(variable: str, named: str, **settings: object) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(**settings)
    lines = refused.value.message.splitlines()
    assert [line for line in lines if line.startswith(f"  {variable}: ") and named in line]
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "url", ["http://localhost:8080", "https://u:p%40@search.example/path/", "http://[::1]:8080"]
)
def test_the_address_of_a_search_server_is_taken(url: str) -> None:
    taken = load_settings(search={"url": f" {url} "}).search.url
    assert taken is not None
    assert taken.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://h", "http://", "http://h:port", "http://[::1", "http://h/?q=", "http://h/#a",
     "http://a..b", "http://exa mple/"],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="TURNMILL_SEARCH__URL"):
        load_settings(search={"url": url})

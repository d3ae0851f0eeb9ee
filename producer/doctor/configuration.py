"""What the settings alone tell: times that do not fit, open doors, passwords anybody guesses."""

from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from turnmill.producer.channels import checks
from turnmill.producer.doctor.findings import Check, Finding, broken, note, warning
from turnmill.schemas.broker import refuse_early_redelivery
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.process.network import refuse_unusable_for_workers
from turnmill.schemas.process.surroundings import refuse_foreign_settings
from turnmill.schemas.settings import Settings
from turnmill.schemas.urls import is_loopback, is_loopback_host

#: What installers, tutorials and images set, and what is tried first.
GUESSED = frozenset(
    ("admin", "changeme", "default", "guest", "pass", "password", "postgres", "rabbitmq", "redis",
     "root", "secret", "test", "turnmill", "valkey", "1234", "12345678")
)  # fmt: skip
_SHORTEST_PASSWORD = 12


def _visibility_timeout(settings: Settings) -> Iterator[Finding]:
    try:
        refuse_early_redelivery(settings)
    except SettingsError as error:
        yield broken(error.message)


def _celery(settings: Settings) -> Iterator[Finding]:
    try:
        refuse_foreign_settings()
    except SettingsError as error:
        yield broken(error.message)


def _network(settings: Settings) -> Iterator[Finding]:
    try:
        refuse_unusable_for_workers(settings)
    except SettingsError as error:
        yield broken(error.message)


def _database_password(settings: Settings) -> Iterator[Finding]:
    url = settings.database.url.get_secret_value()
    if not is_loopback(url) and not password_of(url):
        yield note(
            "the URL has no password and the server is another machine",
            "fine with certificates, pgpass or peer authentication; otherwise set one",
        )
    yield from _guessed("the database", url)


def _broker_password(settings: Settings) -> Iterator[Finding]:
    for url in settings.broker.url.get_secret_value().split(";"):
        user = unquote(urlsplit(url).username or "")
        is_remote = not is_loopback(url)
        if user == password_of(url) == "guest" and is_remote:
            yield broken(
                "guest/guest from another machine: RabbitMQ refuses it, or lets everybody in",
                "rabbitmqctl add_user turnmill …; rabbitmqctl set_permissions turnmill '.*' '.*' "
                "'.*'; rabbitmqctl delete_user guest; change TURNMILL_BROKER__URL",
            )
        elif is_remote and not password_of(url) and not settings.broker.is_amqp:
            yield broken(
                "no password, and the server is another machine: whoever reaches it may delete all",
                "set requirepass (or an ACL user) there and the password in TURNMILL_BROKER__URL",
            )
        elif user != "guest":
            yield from _guessed("the broker", url)


def _guessed(what: str, url: str) -> Iterator[Finding]:
    if password_of(url).lower() in GUESSED:
        detail = f"the password of {what} is one that everybody tries first"
        fix = "set another, there and in the URL: openssl rand -base64 24"
        yield warning(detail, fix) if is_loopback(url) else broken(detail, fix)


def _flower(settings: Settings) -> Iterator[Finding]:
    flower = settings.flower
    is_open = not is_loopback_host(flower.host)
    password = flower.password.get_secret_value() if flower.password else None
    if password is not None and (password.lower() in GUESSED or len(password) < _SHORTEST_PASSWORD):
        detail = f"its password is shorter than {_SHORTEST_PASSWORD} characters or easily guessed"
        fix = "set TURNMILL_FLOWER__PASSWORD to another: openssl rand -base64 24"
        yield (
            broken(f"{detail}, and it listens on {flower.host}", fix)
            if is_open
            else warning(detail, fix)
        )
    if is_open:
        yield warning(
            f"listens on {flower.host} without TLS: its password crosses the network readable",
            "TURNMILL_FLOWER__HOST=127.0.0.1, behind a proxy with TLS",
        )


def _api(settings: Settings) -> Iterator[Finding]:
    if not is_loopback_host(settings.api.host):
        yield note(
            f"listens on {settings.api.host} without TLS: there is no call, /metrics included, "
            "without a key, but keys and dialogue cross the network readable",
            "put a proxy with TLS before it, and let nobody else reach the port",
        )


def password_of(url: str) -> str:
    """The password in a URL, of which every host but the last may have one of its own."""
    credentials, _, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(credentials.partition(":")[2])


CHECKS: dict[str, Check[Settings]] = {
    "celery": _celery,
    "network": _network,
    "visibility timeout": _visibility_timeout,
    "database password": _database_password,
    "broker password": _broker_password,
    "flower": _flower,
    "api": _api,
    # Found when it runs: `checks` needs this package's findings to be imported itself.
    "channels": lambda settings: checks.check_secrets(settings),
}

"""Passwords of URLs stay out of settings' `repr`, of logs and of what tenants read."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from pydantic import ValidationError

from turnmill.schemas import errors
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.observability.masking import masked
from turnmill.schemas.settings import (
    BrokerSettings,
    EngineSettings,
    LogSettings,
    Section,
    Settings,
    load_settings,
)

PASSWORD = "s3cr3t"  # noqa: S105


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://u:s3cr3t@h1:1//;amqp://u:s3cr3t@h2//", "amqp://***@h1:1//;amqp://***@h2//"),
        ("redis://:s3cr3t@h:6379/0", "redis://***@h:6379/0"),
        ("postgresql://u:a@s3cr3t@h,h2:5/db", "postgresql://***@h,h2:5/db"),
        ("postgresql://h/db?password=s3cr3t&x=1", "postgresql://h/db?password=***&x=1"),
        ("host=h password='s3c r3t' user=u", "host=h password=*** user=u"),
        ("it answers 401: https://u:s3cr3t@h/v1?", "it answers 401: https://***@h/v1?"),
        ("http://host/a@b", "http://host/a@b"),
        ("mail@example.org", "mail@example.org"),
    ],
)
def test_the_password_of_a_url_is_masked_wherever_it_stands(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_settings_do_not_show_their_passwords() -> None:
    url = f"://u:{PASSWORD}@h/x"
    settings = Settings(
        database={"url": f"postgresql{url}"},
        broker={
            "url": f"sentinel{url}",
            "sentinel_primary": "main",
            "sentinel_password": PASSWORD,
            "management_url": f"http{url}",
        },
        engine={"endpoints": [f"http{url}"], "endpoint_key": PASSWORD},
        flower={"password": PASSWORD},
    )
    for shown in (repr(settings), str(settings), repr(settings.engine), f"{settings.broker}"):
        assert PASSWORD not in shown
    assert PASSWORD not in f"{settings.model_dump()} {settings.model_dump_json()}"
    assert PASSWORD in settings.database.url.get_secret_value()
    assert (
        f"{settings.database.url} {settings.broker.url}"
        == "postgresql://***@h/x sentinel://***@h/x"
    )


#: What one may write into a setting that is a URL; with letters that should be encoded, too.
LOGINS = (f"u:{PASSWORD}", f":{PASSWORD}", PASSWORD, f"u:x/{PASSWORD}", f"u:x@{PASSWORD}")
SCHEMES = ("postgresql", "amqp", "redis", "http", "grpc")
URLS = [f"{scheme}://{login}@h:5/x" for scheme in SCHEMES for login in LOGINS]


def url_settings() -> list[tuple[str, str]]:
    """By their names: one of a new section is found too."""
    return [
        (section, name)
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for name in field.annotation.model_fields
        if re.search("url|endpoints?$|origin|address", name)
    ]


def test_settings_that_are_urls_are_found() -> None:
    assert len(url_settings()) == 10


@pytest.mark.parametrize(("section", "name"), url_settings())
def test_no_setting_that_is_a_url_shows_its_login(section: str, name: str) -> None:
    taken = 0
    for url in [*URLS, *(f"{login}@h:5" for login in LOGINS)]:
        for value in (url, [url], f"{url};{url}"):
            try:
                settings = load_settings(**{section: {name: value}})
            except SettingsError as error:
                assert PASSWORD not in f"{error!r} {error.message}"
                continue
            taken += 1
            part = getattr(settings, section)
            ways = [settings, part, getattr(part, name), settings.model_dump(), part.model_dump()]
            for shown in (settings.model_dump_json(), *map(str, ways), *map(repr, ways)):
                assert PASSWORD not in shown, (value, shown)
    assert taken or name == "cors_origins"


@pytest.mark.parametrize("command", [["doctor"], ["db", "upgrade"], ["ask", "hello"]])
def test_no_command_shows_a_password_of_its_settings(command: list[str], tmp_path: Path) -> None:
    place = "127.0.0.1:9"
    environ = {
        "PATH": os.environ["PATH"],
        "TURNMILL_DATA": str(tmp_path),
        "TURNMILL_DATABASE__URL": f"postgresql://u:{PASSWORD}@{place}/db",
        "TURNMILL_DATABASE__DIRECT_URL": f"postgresql://u:{PASSWORD}@{place}/db",
        "TURNMILL_BROKER__URL": f"amqp://u:{PASSWORD}@{place}//",
        "TURNMILL_BROKER__MANAGEMENT_URL": f"http://u:{PASSWORD}@{place}",
        "TURNMILL_ENGINE__ENDPOINTS": f'["http://u:{PASSWORD}@{place}"]',
    }
    program = [sys.executable, "-m", "turnmill.producer.cli", *command]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout + done.stderr
    assert PASSWORD not in done.stdout + done.stderr


def test_a_mistake_in_the_settings_does_not_show_the_value() -> None:
    with pytest.raises(ValidationError) as caught:
        BrokerSettings.model_validate({"url": [f"amqp://u:{PASSWORD}@h"]})
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_of_a_log_shows_the_password_of_a_url(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings.model_validate({"format": form}))
    url = f"http://u:{PASSWORD}@host/v1"
    log = structlog.get_logger()
    log.warning("replica.failed", replica=url, others=[url], by={"name": (url,)})
    logging.getLogger("some.library").warning("cannot connect to %s", url)
    try:
        raise OSError(url)
    except OSError:
        log.exception("attempt.crashed")
    said = capsys.readouterr().err
    assert "host/v1" in said
    assert PASSWORD not in said
    if form == "json":
        assert len([json.loads(line) for line in said.splitlines()]) == 3


@pytest.mark.parametrize(
    "kind",
    [
        errors.EngineUnavailable,
        errors.EngineDied,
        errors.Unanswered,
        errors.EngineFailure,
        errors.DatabaseUnavailable,
        errors.BrokerUnavailable,
    ],
)
def test_tenants_read_a_sentence_of_ours_and_not_a_servers(
    kind: type[errors.TurnmillError],
) -> None:
    error = kind(f"http://u:{PASSWORD}@10.0.0.7:8000: it answers 500 (CUDA error at gpu.cc:7)")
    assert "10.0.0.7" in error.message
    assert error.public_message == kind().public_message
    assert error.public_message.endswith(".")


def test_tenants_read_what_is_wrong_with_their_input() -> None:
    assert errors.ContextOverflow("The prompt has 9 tokens.").public_message.endswith("9 tokens.")


def test_a_replica_is_called_by_its_address_without_its_password() -> None:
    pytest.importorskip("httpx")
    from turnmill.workers.engines.openai_http.engine import OpenAIServer

    server = OpenAIServer(f"http://u:{PASSWORD}@h:1", EngineSettings())
    assert server.name == "http://***@h:1"
    server.close()

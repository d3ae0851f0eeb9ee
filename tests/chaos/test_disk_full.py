"""The disk under PostgreSQL and the broker of the embedded stack runs full."""

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from tests.requirements import missing
from turnmill.infra.embedded.postgres import EmbeddedPostgres
from turnmill.infra.embedded.valkey import EmbeddedValkey
from turnmill.infra.migrations import upgrade
from turnmill.producer.accept import accept
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.turns import AcceptedTurn, Lane, TurnRequest

Eventually = Callable[..., None]

_LOG_A_LOT = "SELECT pg_logical_emit_message(true, 'test', %s)"

DISK_BYTES = 256 * 1024 * 1024


@pytest.fixture
def small_disk(server_folder: Path) -> Iterator[Path]:
    """A file system of its own, in memory; only root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("Only root may mount a file system.")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "none", str(server_folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        missing(f"Cannot mount a file system: {mounted.stderr.decode()}")
    try:
        yield server_folder
    finally:
        subprocess.run(["umount", "--lazy", str(server_folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte; the file to remove in the end."""
    path = disk / "filler"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))
    return path


def text_of(request: TurnRequest) -> str:
    return request.messages[0].text


def use_up_the_log(url: str) -> None:
    """Write to PostgreSQL's log until it needs a new file: without one the server gives up."""
    with psycopg.connect(url, autocommit=True) as link, suppress(psycopg.OperationalError):
        for _ in range(20):
            link.execute(_LOG_A_LOT, (secrets.token_hex(1_000_000),))


def use_up_the_append_only_file(url: str) -> None:
    """Write to Valkey until it refuses to: what it cannot keep it does not take."""
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ResponseError, match="MISCONF"):
        for _ in range(100):
            client.set("ballast", secrets.token_hex(1_000_000))


def test_a_full_disk_refuses_what_it_cannot_keep_and_loses_nothing(
    make_system: Callable[..., Any], small_disk: Path, eventually: Eventually
) -> None:
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(small_disk / "postgres"))
        valkey = stack.enter_context(EmbeddedValkey(small_disk / "valkey"))
        upgrade(postgres.url)
        system = make_system(postgres.url, valkey.url)
        stack.callback(system.database.close)
        relay, worker = system.start("relay"), system.start_worker()
        asked: dict[str, TurnRequest] = {}
        accepted: dict[str, AcceptedTurn] = {}

        def ask(key: str, text: str) -> bool:
            asked[key] = system.request(text, lane=Lane.BATCH, idempotency_key=key)
            with suppress(DatabaseUnavailable):
                accepted[key] = accept(system.database, asked[key])
            return key in accepted

        assert all(ask(f"before {n}", "[[wait=1]] before") for n in range(24))
        eventually(lambda: system.count("state = 'running'") == 8)
        filler = fill(small_disk)
        # Random, so that nothing compresses it away.
        eventually(lambda: not ask(f"long {len(asked)}", secrets.token_hex(20_000)))
        use_up_the_append_only_file(valkey.url)
        use_up_the_log(postgres.url)
        eventually(lambda: not ask("during", "short"))
        filler.unlink()
        # The client's part: what was refused is asked again, with the same key.
        eventually(
            lambda: all(key in accepted or ask(key, text_of(asked[key])) for key in list(asked)),
            60,
        )
        system.wait_until_settled()
        system.assert_answered_once_and_in_order(list(accepted.values()))
        assert system.count("true") == len(asked)
        assert relay.is_running
        assert worker.is_running

"""Links that are slow, cut, or open at one end only: between workers, relay, broker, PostgreSQL."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from turnmill.infra.chaos.breaking.proxy import Proxy
from turnmill.producer.accept import accept_many
from turnmill.schemas.turns import AcceptedTurn, Lane

Eventually = Callable[..., None]


@pytest.fixture
def proxy(valkey_url: str) -> Iterator[Proxy]:
    with Proxy.before(valkey_url) as proxy:
        yield proxy


@contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=1) as link:
        yield link


def answer(link: socket.socket) -> bytes:
    """Valkey's first byte; its `-` wants a password, which is answer enough."""
    link.sendall(b"PING\r\n")
    return link.recv(1000)[:1]


def test_a_proxy_delays(proxy: Proxy) -> None:
    with connected(proxy) as link:
        proxy.delay(0.1, jitter=0.02)
        began_at = time.monotonic()
        assert answer(link) == b"-"
        assert time.monotonic() - began_at >= 0.2


def test_a_proxy_resets_what_is_open_and_serves_what_is_new(proxy: Proxy) -> None:
    with connected(proxy) as link:
        assert answer(link) == b"-"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    with connected(proxy) as link:
        assert answer(link) == b"-"


def test_a_proxy_refuses_what_is_new_only(proxy: Proxy) -> None:
    with connected(proxy) as before:
        assert answer(before) == b"-"
        proxy.refuse()
        with pytest.raises(ConnectionError), connected(proxy) as link:
            answer(link)
        assert answer(before) == b"-"
    proxy.heal()
    with connected(proxy) as link:
        assert answer(link) == b"-"


def test_a_half_open_link_is_silent_for_good(proxy: Proxy) -> None:
    with connected(proxy) as before:
        assert answer(before) == b"-"
        proxy.half_open()
        with connected(proxy) as link, pytest.raises(TimeoutError):
            answer(link)
        proxy.heal()
        with pytest.raises(TimeoutError):
            answer(before)
    with connected(proxy) as link:
        assert answer(link) == b"-"


def accept_turns(system: Any, count: int, text: str) -> list[AcceptedTurn]:
    return accept_many(
        system.database, [system.request(f"{text} {n}", lane=Lane.BATCH) for n in range(count)]
    )


def is_live(system: Any, pid: int) -> bool:
    """Whether a worker's heartbeats arrive."""
    rows = system.database.run(
        "SELECT 1 FROM worker_liveness WHERE pid = %s "
        "AND seen_at > clock_timestamp() - interval '1 second'",
        (pid,),
    )
    return bool(rows)


def test_a_worker_cut_off_from_postgres_is_replaced_fenced_and_comes_back(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    with Proxy.before(database_url) as proxy:
        system.start("relay")
        cut_off = system.start_worker(
            TURNMILL_DATABASE__URL=proxy.url(database_url),
            TURNMILL_DATABASE__ANSWER_TIMEOUT_S="4",
        )
        accepted = accept_turns(system, 8, "[[wait=1]] cut off")
        eventually(lambda: system.count("state = 'running'") == 8)
        proxy.half_open()
        substitute = system.start_worker()
        system.wait_until_settled()
        before = system.database.run("SELECT * FROM replies ORDER BY turn_id")
        assert not is_live(system, cut_off.pid)
        substitute.kill()
        proxy.heal()
        eventually(lambda: cut_off.says("turn.fenced"), 40)
        eventually(lambda: is_live(system, cut_off.pid), 40)
        assert system.database.run("SELECT * FROM replies ORDER BY turn_id") == before
        # Longer than a lease: its heartbeats are back too.
        more = accept_turns(system, 4, f"[[wait={system.settings.worker.lease_s + 1}]] healed")
        system.wait_until_settled()
        system.assert_answered_once_and_in_order([*accepted, *more])
        assert system.count("attempt > 1") == len(accepted)


@pytest.mark.parametrize(
    ("part", "broker"),
    [
        ("relay", "rabbitmq_vhost_url"),
        ("worker", "rabbitmq_vhost_url"),
        ("worker", "valkey_url"),
    ],
)
def test_hints_flow_again_after_a_half_open_link_to_the_broker(
    part: str,
    broker: str,
    request: pytest.FixtureRequest,
    make_system: Callable[..., Any],
    database_url: str,
    eventually: Eventually,
) -> None:
    url = request.getfixturevalue(broker)
    system = make_system(database_url, url)
    with Proxy.before(url) as proxy:
        cut = {"TURNMILL_BROKER__URL": proxy.url(url), "TURNMILL_BROKER__HEARTBEAT_S": "2"}
        direct: dict[str, str] = {}
        system.start("relay", **(cut if part == "relay" else direct))
        system.start_worker(**(cut if part == "worker" else direct))
        accepted = accept_turns(system, 8, "before")
        system.wait_until_settled()
        proxy.half_open()
        accepted += accept_turns(system, 8, "during")
        eventually(
            lambda: system.database.run("SELECT 1 FROM outbox WHERE published_at > '-infinity'")
        )
        proxy.heal()
        system.wait_until_settled()
        system.assert_answered_once_and_in_order(accepted)


def test_connections_reset_under_load_lose_and_double_nothing(
    system: Any, eventually: Eventually
) -> None:
    with (
        Proxy.before(system.settings.database.url.get_secret_value()) as to_database,
        Proxy.before(system.settings.broker.url.get_secret_value()) as to_broker,
    ):
        shaky = {
            "TURNMILL_DATABASE__URL": to_database.url(
                system.settings.database.url.get_secret_value()
            ),
            "TURNMILL_BROKER__URL": to_broker.url(system.settings.broker.url.get_secret_value()),
        }
        system.start("relay", **shaky)
        for _ in range(2):
            system.start_worker(**shaky)
        to_database.delay(0.001, jitter=0.002)
        accepted = []
        for round_number in range(6):
            before = system.count("state = 'completed'")
            accepted += accept_turns(system, 30, f"[[wait=0.1]] round {round_number}")
            eventually(lambda before=before: system.count("state = 'completed'") > before)
            (to_database, to_broker)[round_number % 2].reset()
        system.wait_until_settled()
        system.assert_answered_once_and_in_order(accepted)

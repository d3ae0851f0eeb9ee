"""Metrics and probes of real processes, found as Prometheus finds them."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from turnmill.producer.accept import accept_many
from turnmill.schemas.observability.targets import FOLDER
from turnmill.schemas.turns import Lane

Eventually = Callable[..., None]

SLOW = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.5", "TURNMILL_WORKER__DRAIN_S": "20"}


def targets(system: Any) -> dict[str, str]:
    """The address of each component."""
    folder = Path(system.variables["TURNMILL_DATA"]) / FOLDER
    listed = [json.loads(path.read_text())[0] for path in folder.glob("*.json")]
    return {entry["labels"]["component"]: entry["targets"][0] for entry in listed}


def figures(address: str) -> dict[str, float]:
    """Samples by name and the values of their labels."""
    text = httpx.get(f"http://{address}/metrics").text
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def status(address: str, probe: str) -> int:
    try:
        return httpx.get(f"http://{address}/{probe}").status_code
    except httpx.TransportError:
        return 0


def test_relay_and_worker_tell_what_became_of_turns(system: Any, eventually: Eventually) -> None:
    system.start("relay")
    worker = system.start_worker()
    accept_many(system.database, [system.request(f"turn {n}") for n in range(20)])
    system.wait_until_settled()
    found = targets(system)
    eventually(lambda: status(found["worker"], "ready") == 200, 10)
    assert status(found["relay"], "ready") == status(found["relay"], "live") == 200
    eventually(
        lambda: figures(found["worker"]).get("turnmill_attempts_total interactive answered") == 20,
        10,
    )
    seen = figures(found["worker"])
    for name in ("turn_queue", "turn_first_chunk", "turn_reply", "attempt_first_token", "attempt"):
        assert seen[f"turnmill_{name}_seconds_count interactive"] == 20, name
    assert seen["turnmill_tokens_total output"] > 0
    assert seen["turnmill_slots_count interactive"] == 8
    assert seen["turnmill_slots_busy_count interactive"] == 0
    assert seen["turnmill_engine_up"] == seen["turnmill_consumer_up"] == 1
    relay = figures(found["relay"])
    assert relay["turnmill_hints_published_total confirmed"] >= 20
    assert relay["turnmill_relay_window_count"] == system.settings.relay.window
    worker.send(signal.SIGTERM)
    worker.wait(30)
    assert "worker" not in targets(system)


def test_a_worker_is_not_ready_while_it_loads_and_once_it_drains(
    system: Any, eventually: Eventually
) -> None:
    system.start("relay")
    worker = system.start_worker(**SLOW)
    address = targets(system)["worker"]
    eventually(lambda: status(address, "ready") == 200, 10)
    accept_many(system.database, [system.request("one two three four five six seven eight nine")])
    eventually(lambda: figures(address)["turnmill_slots_busy_count interactive"] == 1, 20)
    worker.send(signal.SIGTERM)
    eventually(lambda: status(address, "ready") == 503, 5)
    assert status(address, "live") == 200
    system.wait_until_settled()
    worker.wait(30)


def test_outages_make_processes_unready_and_not_dead(
    make_system: Any, database_url: str, valkey_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, valkey_url)
    system.start("relay", TURNMILL_BROKER__URL="redis://127.0.0.1:9")
    system.start("worker", TURNMILL_BROKER__URL="redis://127.0.0.1:9")
    eventually(lambda: {"relay", "worker"} <= targets(system).keys(), 30)
    found = targets(system)
    accept_many(system.database, [system.request("hello")])
    eventually(lambda: status(found["worker"], "ready") == 503, 30)
    eventually(lambda: "broker" in httpx.get(f"http://{found['worker']}/ready").text, 30)
    eventually(lambda: "broker" in httpx.get(f"http://{found['relay']}/ready").text, 30)
    assert status(found["worker"], "live") == status(found["relay"], "live") == 200
    assert figures(found["worker"])["turnmill_consumer_up"] == 0
    assert figures(found["relay"])["turnmill_hints_published_total unconfirmed"] >= 1


def test_the_api_serves_its_figures_and_what_is_open(
    make_system: Any, database_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, "amqp://nobody")
    system.start("api", TURNMILL_API__PORT="0")
    eventually(lambda: "api" in targets(system), 30)
    address = targets(system)["api"]
    eventually(lambda: status(address, "ready") == 200, 30)
    accept_many(system.database, [system.request("hello", lane=Lane.BATCH)])
    seen = figures(address)
    assert seen["turnmill_turns_open_count batch queued"] == 1
    assert seen["turnmill_outbox_published_count batch"] == 0
    assert status(address, "live") == 200


def test_an_api_without_its_database_serves_its_own_figures(
    make_system: Any, database_url: str, postgres_url: str, eventually: Eventually
) -> None:
    system = make_system(database_url, "amqp://nobody")
    system.start("api", TURNMILL_API__PORT="0")
    eventually(lambda: "api" in targets(system), 30)
    address = targets(system)["api"]
    eventually(lambda: status(address, "ready") == 200, 30)
    name = conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(Identifier(name)))
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
        eventually(lambda: status(address, "ready") == 503, 20)
        assert "process_cpu_seconds_total" in figures(address)
        assert "turnmill_turns_parked_count" not in figures(address)
        assert status(address, "live") == 200

"""Metrics and probes of one process, and how Prometheus finds them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from tests.requirements import missing
from turnmill.producer.api.resources.metrics import APIMetrics
from turnmill.producer.relay import metrics as relay_metrics
from turnmill.schemas.observability.targets import FOLDER, remove_dead_targets
from turnmill.schemas.observability.telemetry import REGISTRY, STUCK_AFTER_S, Health, telemetry
from turnmill.schemas.outcomes import HANDED_BACK, Snoozed
from turnmill.schemas.process.surroundings import keep_out_foreign_variables
from turnmill.schemas.settings import Settings, load_settings
from turnmill.workers.consumer import metrics as worker_metrics
from turnmill.workers.consumer.health import why_stuck, why_unready
from turnmill.workers.turn.leases import Leases

ROOT = Path(__file__).parents[3]


def settings_in(data: Path, **metrics: object) -> Settings:
    return load_settings(data=data, metrics=metrics)


def entries(data: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text())[0] for path in sorted((data / FOLDER).glob("*.json"))]


def get(port: int | None, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}")


def leases(**overrides: object) -> Leases:
    made = Leases(None, load_settings().worker, model="m", engine="echo")  # type: ignore[arg-type]
    made.heartbeat._reconnected_at = float("-inf")
    for name, value in overrides.items():
        setattr(made.heartbeat if hasattr(made.heartbeat, name) else made, name, value)
    return made


def test_probes_say_why_not_and_metrics_are_prometheus_text(tmp_path: Path) -> None:
    reasons: list[str | None] = [None, "the engine is loading"]
    health = Health(lambda: reasons[0], lambda: reasons[1])
    with telemetry(settings_in(tmp_path), "worker", health) as port:
        assert get(port, "/live").status_code == 200
        assert (get(port, "/ready").status_code, get(port, "/ready").text.strip()) == (
            503,
            "the engine is loading",
        )
        reasons[1] = None
        assert get(port, "/ready").text == "ok\n"
        reasons[0] = "stuck"
        assert get(port, "/live").status_code == get(port, "/ready").status_code == 503
        assert get(port, "/").status_code == 404
        names = {
            family.name for family in text_string_to_metric_families(get(port, "/metrics").text)
        }
    assert "turnmill_attempts" in names
    assert "process_resident_memory_bytes" in names


def test_alerts_on_rates_find_their_series_before_the_first_event() -> None:
    """`rate` sees no increase in a series that begins with its first event."""
    text = (ROOT / "infra/prometheus/alerts.yml").read_text()
    rules = re.findall(
        r"sum\(rate\((turnmill_\w+)(?:\{(\w+)=\"(\w+)\"\})?\[5m\]\)\) > 0$", text, re.M
    )
    assert len(rules) >= 2
    program = (
        "import turnmill.producer.relay.metrics, turnmill.workers.consumer.metrics\n"
        "from prometheus_client import generate_latest\n"
        "from turnmill.schemas.observability.telemetry import REGISTRY\n"
        "print(generate_latest(REGISTRY).decode())"
    )
    shown = subprocess.check_output([sys.executable, "-c", program], text=True)
    for name, label, value in rules:
        of = f'{label}="{value}"' if label else ""
        assert re.search(rf"^{name}\{{.*{of}.*\}} 0\.0$", shown, re.MULTILINE), name


def test_a_probe_that_fails_is_no_yes(tmp_path: Path) -> None:
    def fail() -> str | None:
        raise ValueError("secret")

    with telemetry(settings_in(tmp_path), "api", Health(unready=fail)) as port:
        answer = get(port, "/ready")
    assert (answer.status_code, answer.text) == (503, "ValueError\n")


def test_a_port_that_another_process_has_is_replaced_by_a_free_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with (
            capture_logs() as logs,
            telemetry(settings_in(tmp_path, port=taken), "relay", Health()) as port,
        ):
            assert port not in (None, taken)
            assert get(port, "/live").status_code == 200
            assert entries(tmp_path)[0]["targets"] == [f"127.0.0.1:{port}"]
    assert next(log["event"] for log in logs) == "metrics.port_unavailable"


def test_a_process_that_may_not_listen_says_so_and_works(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, host="192.0.2.1")
    with capture_logs() as logs, telemetry(settings, "worker", Health()) as port:
        assert port is None
    assert {log["event"] for log in logs} == {"metrics.port_unavailable"}
    assert entries(tmp_path) == []


def test_an_entry_is_there_while_its_process_serves(tmp_path: Path) -> None:
    with telemetry(settings_in(tmp_path), "worker", Health(), lanes="batch") as port:
        expected = {"component": "worker", "lanes": "batch"}
        assert entries(tmp_path) == [{"targets": [f"127.0.0.1:{port}"], "labels": expected}]
        remove_dead_targets(tmp_path)
        assert len(entries(tmp_path)) == 1
    assert entries(tmp_path) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_for_all_is_listed_as_one_that_can_be_reached(tmp_path: Path, host: str) -> None:
    with telemetry(settings_in(tmp_path, host=host), "api", Health()) as port:
        if port is None:
            missing("No IPv6")
        local = "127.0.0.1" if host == "0.0.0.0" else "[::1]"
        assert entries(tmp_path)[0]["targets"] == [f"{local}:{port}"]
        assert httpx.get(f"http://{local}:{port}/live").status_code == 200


def test_the_entry_of_a_killed_process_is_removed_by_the_next_one(tmp_path: Path) -> None:
    program = (
        "import time; from turnmill.schemas.settings import load_settings\n"
        "from turnmill.schemas.observability.telemetry import Health, telemetry\n"
        "with telemetry(load_settings(), 'worker', Health()) as port:\n"
        "    print(port, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "TURNMILL_DATA": str(tmp_path)},
        text=True,
    ) as process:
        assert process.stdout is not None
        port = re.findall(r"^\d+$", process.stdout.readline()) or re.findall(
            r"^\d+$", process.stdout.readline()
        )
        assert port
        with telemetry(settings_in(tmp_path), "relay", Health()):
            assert len(entries(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(entries(tmp_path)) == 1
        with telemetry(settings_in(tmp_path), "relay", Health()):
            assert [entry["labels"] for entry in entries(tmp_path)] == [{"component": "relay"}]


def test_where_no_data_folder_is_nothing_is_made(tmp_path: Path) -> None:
    data = tmp_path / "none"
    with telemetry(settings_in(data), "worker", Health()) as port:
        assert get(port, "/live").status_code == 200
    assert not data.exists()


@pytest.mark.parametrize("loop", ["beat_at", "looped_at"])
def test_a_worker_whose_loop_is_stuck_is_not_alive(loop: str) -> None:
    now = time.monotonic()
    assert why_stuck(leases(beat_at=now, looped_at=now)) is None
    assert why_stuck(leases()) is None, "it has not begun"
    stuck = why_stuck(leases(**{loop: now - STUCK_AFTER_S - 1}))
    assert stuck is not None
    assert stuck.startswith("the ")


def test_a_worker_is_ready_while_it_takes_turns_or_stands_by() -> None:
    assert why_unready(leases()) is None
    assert why_unready(leases(unavailable_because="gone")) == "the engine is away"
    assert "broker" in str(why_unready(leases(consumed_at=time.monotonic() - 60)))
    assert "PostgreSQL" in str(why_unready(leases(_reconnected_at=float("inf"))))
    standing_by = leases(consumed_at=time.monotonic() - 60)
    standing_by.consuming.clear()
    assert why_unready(standing_by) is None
    draining = leases()
    draining.stop_consuming()
    assert why_unready(draining) == "draining"


def test_an_outcome_is_counted_as_the_attempts_table_names_it() -> None:
    assert worker_metrics.outcome_name(HANDED_BACK) == "handed_back"
    assert worker_metrics.outcome_name(Snoozed(1.0, "away", counts=False)) == "handed_back"
    assert worker_metrics.outcome_name(Snoozed(1.0, "failed")) == "snoozed"


def test_a_foreign_variable_does_not_send_metrics_to_shared_files() -> None:
    environ = {"PROMETHEUS_MULTIPROC_DIR": "/tmp/x", "prometheus_multiproc_dir": "/tmp/x"}  # noqa: S108
    keep_out_foreign_variables(environ)
    assert not {name for name in environ if "multiproc" in name.lower()}


#: Of a channel as turnmill.toml names it, a format, a gate, a check.
_LABELS = {
    "lane", "outcome", "kind", "action", "by", "result", "reason", "route", "method", "status",
    "channel", "end", "verdict", "stage", "category",
}  # fmt: skip


def import_metrics() -> None:
    """A metric is there once its module was imported, whichever test did it."""
    for folder in ("producer", "schemas", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            if "observability.telemetry import" in path.read_text():
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                import_module(f"turnmill.{name}")


def test_metrics_have_our_prefix_and_few_labels_and_are_all_documented() -> None:
    import_metrics()
    page = (ROOT / "docs" / "operations.md").read_text()
    for collector in REGISTRY._collector_to_names:
        # A sample shows labels, and there is none before something was counted.
        assert set(getattr(collector, "_labelnames", ())) <= _LABELS, collector
    ours = [*REGISTRY.collect(), *APIMetrics().registry.collect()]
    families = [family for family in ours if not family.name.startswith("process_")]
    gauges = worker_metrics.WorkerGauges(leases(), (), 1).collect()
    assert relay_metrics.HINTS_LOST in REGISTRY._collector_to_names
    for family in [*families, *gauges]:
        assert re.fullmatch(r"turnmill_[a-z]+(_[a-z]+)*", family.name)
        assert f"`{family.name}" in page, family.name
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels <= _LABELS, family.name

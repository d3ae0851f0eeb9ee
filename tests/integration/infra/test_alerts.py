"""The alert rules and the dashboards: what they name exists, and each rule fires on its trouble."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest

from tests.selection import PROMTOOL
from turnmill.schemas.errors import BadSignature, DatabaseUnavailable, NotFound, UnknownBot
from turnmill.schemas.observability.targets import FOLDER
from turnmill.schemas.observability.telemetry import REGISTRY
from turnmill.workers.delivery import metrics as delivery_metrics

INFRA = Path(__file__).parents[3] / "infra"
RULES = INFRA / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((INFRA / "grafana").glob("*.json"))

#: Made by Prometheus itself.
OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(?:turnmill|process)_\w+|\bup\b(?=\{)")
SUFFIXES = ("_bucket", "_count", "_sum")

#: All is well, for five hours: what is counted grows.
WELL = {
    'up{job="turnmill"}': "1+0x300",
    'turnmill_turns_oldest_open_age_seconds{lane="interactive"}': "2+0x300",
    'turnmill_turn_first_chunk_seconds_bucket{lane="interactive",le="10.0"}': "0+100x300",
    'turnmill_turn_first_chunk_seconds_count{lane="interactive"}': "0+100x300",
    'turnmill_api_requests_total{status="200"}': "0+100x300",
    'turnmill_api_requests_total{status="503"}': "0+1x300",
    "turnmill_turns_parked_count": "7+0x300",
    'turnmill_delivery_attempts_total{channel="slack",outcome="failed"}': "3+0x300",
    'turnmill_channel_events_total{channel="slack",outcome="invalid_signature"}': "3+0x300",
    "turnmill_conversations_handed_off_age_seconds": "600+0x300",
    "turnmill_relay_window_count": "512+0x300",
    "turnmill_relay_window_full": "0+0x300",
    "turnmill_workers_consuming_count": "2+0x300",
    "turnmill_outbox_unpublished_age_seconds": "0.1+0x300",
    'turnmill_hints_published_total{result="unconfirmed"}': "3+0x300",
    'turnmill_engine_up{instance="busy"}': "1+0x300",
    'turnmill_consumer_up{instance="busy"}': "1+0x300",
    'turnmill_worker_draining{instance="busy"}': "0+0x300",
    'turnmill_worker_standing_by{instance="busy"}': "0+0x300",
    'turnmill_engine_up{instance="standby"}': "1+0x300",
    'turnmill_consumer_up{instance="standby"}': "0+0x300",
    'turnmill_worker_draining{instance="standby"}': "0+0x300",
    'turnmill_worker_standing_by{instance="standby"}': "1+0x300",
    "turnmill_engine_hung_count": "0+0x300",
    "turnmill_worker_database_up": "1+0x300",
    'turnmill_turns_rescued_total{action="requeued"}': "3+0x300",
    'turnmill_slots_busy_count{lane="interactive"}': "4+0x300",
    'turnmill_slots_count{lane="interactive"}': "8+0x300",
    'process_open_fds{job="turnmill"}': "100+0x300",
    'process_max_fds{job="turnmill"}': "1024+0x300",
    'turnmill_lane_pauses_count{lane="batch"}': "0+0x300",
    "turnmill_files_undeleted_count": "0+0x300",
    'turnmill_pruner_rounds_total{result="failed"}': "3+0x300",
}

#: By alert: the series that differ then. None: nobody tells.
TROUBLE: dict[str, dict[str, str | None]] = {
    "TurnmillUsersWait": {'turnmill_turns_oldest_open_age_seconds{lane="interactive"}': "0+60x300"},
    "TurnmillFirstTextLate": {
        'turnmill_turn_first_chunk_seconds_bucket{lane="interactive",le="10.0"}': "0+80x300"
    },
    "TurnmillStateUnknown": {'turnmill_turns_oldest_open_age_seconds{lane="interactive"}': None},
    "TurnmillCallsFail": {'turnmill_api_requests_total{status="503"}': "0+10x300"},
    "TurnmillTurnsParked": {"turnmill_turns_parked_count": "0+1x300"},
    "TurnmillDeliveriesFail": {
        'turnmill_delivery_attempts_total{channel="slack",outcome="failed"}': "0+1x300"
    },
    "TurnmillEventsRefused": {
        'turnmill_channel_events_total{channel="slack",outcome="invalid_signature"}': "0+1x300"
    },
    "TurnmillPeopleWaitForPeople": {"turnmill_conversations_handed_off_age_seconds": "0+60x300"},
    "TurnmillProcessGone": {'up{job="turnmill"}': "0+0x300"},
    "TurnmillNoRelay": {"turnmill_relay_window_count": None},
    "TurnmillNoWorker": {"turnmill_workers_consuming_count": "0+0x300"},
    "TurnmillHintsWait": {"turnmill_outbox_unpublished_age_seconds": "0+60x300"},
    "TurnmillBrokerRefusesHints": {
        'turnmill_hints_published_total{result="unconfirmed"}': "0+1x300"
    },
    "TurnmillEngineAway": {'turnmill_engine_up{instance="busy"}': "0+0x300"},
    "TurnmillEngineHangs": {"turnmill_engine_hung_count": "1+0x300"},
    "TurnmillWorkerWithoutDatabase": {"turnmill_worker_database_up": "0+0x300"},
    "TurnmillWorkerWithoutBroker": {'turnmill_consumer_up{instance="busy"}': "0+0x300"},
    "TurnmillWorkersDie": {'turnmill_turns_rescued_total{action="requeued"}': "0+1x300"},
    "TurnmillSlotsBusy": {'turnmill_slots_busy_count{lane="interactive"}': "8+0x300"},
    "TurnmillFilesRunOut": {'process_open_fds{job="turnmill"}': "1000+0x300"},
    "TurnmillLanePaused": {'turnmill_lane_pauses_count{lane="batch"}': "1+0x300"},
    "TurnmillFilesUndeleted": {"turnmill_files_undeleted_count": "2+0x300"},
    "TurnmillPrunerFails": {'turnmill_pruner_rounds_total{result="failed"}': "0+1x300"},
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions(value: Any) -> list[str]:
    """All `expr` within a dashboard."""
    if isinstance(value, list):
        return [each for item in value for each in expressions(item)]
    if not isinstance(value, dict):
        return []
    own = [value["expr"]] if isinstance(value.get("expr"), str) else []
    return own + [each for item in value.values() for each in expressions(item)]


def exposed(text: str) -> set[str]:
    """The names of the samples that metrics in Prometheus' text format may have."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found |= {name + suffix for suffix in SUFFIXES} if kind == "histogram" else {name}
    return found


def test_every_series_of_rules_and_dashboards_is_exposed(
    make_system: Any, database_url: str, valkey_url: str, eventually: Callable[..., None]
) -> None:
    system = make_system(database_url, valkey_url)
    for component in ("api", "relay", "worker"):
        system.start(component, TURNMILL_API__PORT="0")
    folder = Path(system.variables["TURNMILL_DATA"]) / FOLDER
    eventually(lambda: len(list(folder.glob("*.json"))) == 3, 30)
    known = OF_PROMETHEUS | exposed(generate_latest(REGISTRY).decode())
    assert "turnmill_delivery_attempts_total" in known, delivery_metrics.__name__
    for path in folder.glob("*.json"):
        (entry,) = json.loads(path.read_text())
        known |= exposed(httpx.get(f"http://{entry['targets'][0]}/metrics").text)
    named = {rule["alert"]: rule["expr"] for rule in rules()}
    for path in DASHBOARDS:
        found = expressions(json.loads(path.read_text()))
        assert found
        named |= {f"{path.name}: {each}": each for each in found}
    unknown = {where: set(NAME.findall(expr)) - known for where, expr in named.items()}
    assert {where: names for where, names in unknown.items() if names} == {}


def test_each_rule_says_how_urgent_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}
    assert [rule["alert"] for rule in rules()] == list(TROUBLE)


def test_what_events_are_refused_for_are_codes_of_errors() -> None:
    (rule,) = [each["expr"] for each in rules() if each["alert"] == "TurnmillEventsRefused"]
    (outcomes,) = re.findall(r'outcome=~"([^"]+)"', rule)
    known = {BadSignature.code, DatabaseUnavailable.code, UnknownBot.code, NotFound.code}
    assert set(outcomes.split("|")) == known


@pytest.mark.needs("alerts")
def test_each_rule_fires_on_its_trouble_and_none_where_all_is_well(tmp_path: Path) -> None:
    def case(changed: dict[str, str | None], expr: str, samples: list[dict[str, Any]]) -> Any:
        series = [{"series": n, "values": v} for n, v in (WELL | changed).items() if v is not None]
        asked = {"expr": expr, "eval_time": "299m", "exp_samples": samples}
        return {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}

    firing = 'count(ALERTS{{alertname=~"{}", alertstate="firing"}})'
    cases = [case({}, firing.format(".+"), [])]
    for alert, changed in TROUBLE.items():
        cases.append(case(changed, firing.format(alert), [{"labels": "{}", "value": 1}]))
    path = tmp_path / "alerts.test.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases})
    )
    ended = subprocess.run([PROMTOOL, "test", "rules", path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.needs("alerts")
def test_the_rules_and_every_query_of_the_dashboards_are_promql(tmp_path: Path) -> None:
    queries = [
        {"record": f"query_{number}", "expr": re.sub(r"\$__\w+", "5m", expr)}
        for path in DASHBOARDS
        for number, expr in enumerate(expressions(json.loads(path.read_text())))
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queries}]}))
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", RULES, path], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

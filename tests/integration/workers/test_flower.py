"""Flower shows the attempts and nothing of what was said, to those who know the password."""

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from flower.urls import handlers
from tornado.web import URLSpec
from typer.testing import CliRunner

from turnmill.infra.embedded.ports import listens
from turnmill.producer.accept import accept
from turnmill.producer.cli.app import app
from turnmill.workers.consumer.flower import REFUSAL
from turnmill.workers.testing import InlineWorker

Eventually = Callable[..., None]

LOGIN = ("turnmill", "correct-horse-battery")
#: What a user said, and an echo answers.
WORDS = "xylophone-4711"
USAGE = 64
#: A turn of 600 words then takes a minute.
SLOW = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.1"}
#: The password of a second broker, which is away.
ALTERNATE = "sesame-4711"


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    return make_system(database_url, f"{valkey_url};redis://:{ALTERNATE}@127.0.0.1:1/0")


@pytest.fixture
def start_flower(system: Any, eventually: Eventually) -> Callable[..., Any]:
    """Start the process; its address is in `url`."""
    return lambda **variables: start_flower_on(system, eventually, **variables)


def start_flower_on(system: Any, eventually: Eventually, **variables: str) -> Any:
    """Start Flower beside a system; it answers when this returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flower = system.start(
        "flower",
        TURNMILL_FLOWER__PASSWORD=LOGIN[1],
        TURNMILL_FLOWER__PORT=str(port),
        **variables,
    )
    flower.url = f"http://127.0.0.1:{port}"

    def is_there() -> bool:
        try:
            return httpx.get(f"{flower.url}/healthcheck").status_code == 200
        except httpx.TransportError:
            return not flower.is_running

    eventually(is_there, 20)
    assert flower.is_running, flower.log.read_text()
    return flower


@pytest.fixture
def flower(start_flower: Callable[..., Any]) -> Any:
    return start_flower()


@pytest.fixture
def visitor(flower: Any) -> Iterator[httpx.Client]:
    """Somebody who knows the password."""
    with visit(flower) as client:
        yield client


def visit(flower: Any) -> httpx.Client:
    return httpx.Client(base_url=flower.url, auth=LOGIN, timeout=10)


def task_of(turn: Any, attempt: int = 1) -> str:
    return f"turn_{turn.turn_id.hex}-{attempt}"


def state_of(visitor: httpx.Client, name: str) -> str | None:
    """As Flower shows it; None: it knows no such task."""
    task = visitor.get("/api/tasks").json().get(name)
    return task["state"] if task else None


def test_a_turn_is_a_task_with_its_lane_and_model_but_without_its_text(
    system: Any, visitor: httpx.Client, eventually: Eventually
) -> None:
    system.start("relay")
    worker = system.start_worker()
    turn_ids: set[str] = set()

    def shows_a_turn() -> bool:
        # Flower sees what happens once it has asked the worker for its events.
        turn = accept(system.database, system.request(f"Whisper {WORDS} to nobody else."))
        turn_ids.add(turn.turn_id.hex)
        return any(
            task["state"] == "SUCCESS" and task["kwargs"]
            for task in visitor.get("/api/tasks").json().values()
        )

    eventually(shows_a_turn, 30, 0.5)
    system.wait_until_settled()
    tasks = {
        name: task for name, task in visitor.get("/api/tasks").json().items() if task["kwargs"]
    }
    assert {name.rpartition("-")[0].removeprefix("turn_") for name in tasks} <= turn_ids
    for task in tasks.values():
        assert task["name"] == "turnmill.turn.answer"
        assert "'lane': 'interactive'" in task["kwargs"]
        assert f"'model': '{system.settings.engine.model_name}'" in task["kwargs"]
        assert any(f"'turn_id': '{turn_id}'" in task["kwargs"] for turn_id in turn_ids)

    rows = system.database.run("SELECT content FROM replies")
    assert all(WORDS in row.content for row in rows)
    name = next(iter(tasks))
    (consumer,) = visitor.get("/api/workers?refresh=1").json()
    for path in (
        "/api/tasks", f"/api/task/info/{name}", f"/task/{name}", "/tasks",
        "/api/workers", f"/worker/{consumer}", "/workers", "/broker", "/metrics",
    ):  # fmt: skip
        answer = visitor.get(path)
        assert answer.status_code == 200, path
        assert WORDS not in answer.text, path
        assert ALTERNATE not in answer.text, path
        assert (
            urlsplit(system.settings.broker.url.get_secret_value()).password not in answer.text
        ), path
    assert WORDS not in worker.log.read_text()


def test_history_survives_a_restart_and_no_attempt_is_lost_or_beautified(
    system: Any, start_flower: Callable[..., Any], eventually: Eventually
) -> None:
    """An attempt that failed is no success, and one that was tried again is another task."""
    system.start("relay")
    first = start_flower()
    system.start_worker(TURNMILL_WORKER__MAX_ATTEMPTS="2")
    with visit(first) as visitor:

        def sends_events() -> bool:
            turn = accept(system.database, system.request("warm up"))
            system.wait_until_settled()
            return state_of(visitor, task_of(turn)) == "SUCCESS"

        eventually(sends_events, 30, 0.5)
        texts = ("fine", "[[fail]]", "[[unavailable]]")
        fine, failed, parked = (
            accept(system.database, system.request(f"{text} {WORDS}")) for text in texts
        )
        system.wait_until_settled()
        expected = {
            task_of(fine): "SUCCESS",
            task_of(failed): "FAILURE",
            task_of(parked): "RETRY",
            task_of(parked, 2): "FAILURE",
        }

        def shown(visitor: httpx.Client) -> dict[str, str | None]:
            return {name: state_of(visitor, name) for name in expected}

        eventually(lambda: shown(visitor) == expected, 20)
        live = visitor.get("/api/tasks").json()
    first.kill()
    with visit(start_flower()) as visitor:
        assert shown(visitor) == expected, "at once, without any event"
        restored = visitor.get("/api/tasks").json()
        for name in expected:
            for field in ("name", "kwargs", "worker", "state"):
                assert restored[name][field] == live[name][field], field
            page = visitor.get(f"/task/{name}")
            assert page.status_code == 200
            assert WORDS not in page.text
        assert restored[task_of(failed)]["exception"] == "engine_failure"
        assert live[task_of(failed)]["exception"] == "engine_failure"
        assert restored[task_of(parked, 2)]["exception"] == "attempts_used_up"
        assert restored[task_of(fine)]["runtime"] >= 0
        columns = "&".join(
            f"{key}={value}"
            for key, value in {
                "draw": 1, "start": 0, "length": 10, "order[0][column]": 0,
                "order[0][dir]": "desc", "columns[0][data]": "received",
                "search[value]": "state:FAILURE",
            }.items()
        )  # fmt: skip
        found = visitor.get(f"/tasks/datatable?{columns}").json()
        assert {row["uuid"] for row in found["data"]} == {task_of(failed), task_of(parked, 2)}


def test_on_rabbitmq_flower_shows_attempts_and_the_worker_and_restores_them(
    make_system: Callable[..., Any],
    database_url: str,
    rabbitmq_vhost_url: str,
    eventually: Eventually,
) -> None:
    system = make_system(database_url, rabbitmq_vhost_url)
    password = urlsplit(rabbitmq_vhost_url).password
    assert password is not None
    system.start("relay")
    system.start_worker()
    first = start_flower_on(system, eventually)
    names: list[str] = []
    with visit(first) as visitor:

        def shows_a_turn() -> bool:
            turn = accept(system.database, system.request(f"Whisper {WORDS}."))
            names.append(task_of(turn))
            system.wait_until_settled()
            return state_of(visitor, names[-1]) == "SUCCESS"

        eventually(shows_a_turn, 30, 0.5)
        (consumer,) = visitor.get("/api/workers?refresh=1").json()
        for path in ("/tasks", f"/task/{names[-1]}", f"/worker/{consumer}", "/broker", "/metrics"):
            answer = visitor.get(path)
            assert answer.status_code == 200, path
            assert WORDS not in answer.text
            assert password not in answer.text
    first.kill()
    with visit(start_flower_on(system, eventually)) as visitor:
        assert {state_of(visitor, name) for name in names} == {"SUCCESS"}


def test_the_history_is_bounded(system: Any, start_flower: Callable[..., Any]) -> None:
    with InlineWorker(system.settings):
        turns = [accept(system.database, system.request(str(number))) for number in range(5)]
        system.wait_until_settled()
    with visit(start_flower(TURNMILL_FLOWER__HISTORY="2")) as visitor:
        assert set(visitor.get("/api/tasks").json()) == {task_of(turn) for turn in turns[-2:]}
    with visit(start_flower(TURNMILL_FLOWER__HISTORY="0")) as visitor:
        assert visitor.get("/api/tasks").json() == {}


def test_a_killed_worker_is_offline_and_has_nothing_active(
    system: Any, visitor: httpx.Client, eventually: Eventually
) -> None:
    system.start("relay")
    worker = system.start_worker(**SLOW)
    turns = [accept(system.database, system.request("[[tokens=600]]")) for _ in range(3)]

    def rows() -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = visitor.get("/workers?json=1").json()["data"]
        return data

    eventually(lambda: [row["active"] for row in rows()] == [3], 40)
    worker.kill()
    eventually(lambda: [(row["status"], row["active"]) for row in rows()] == [(False, 0)], 40)
    name = rows()[0]["hostname"]
    metrics = visitor.get("/metrics").text
    for metric in ("worker_online", "worker_number_of_currently_executing_tasks"):
        assert f'flower_{metric}{{worker="{name}"}} 0.0' in metrics
    # A worker sweeps the dead one's turns; nothing reports the end of their attempts.
    system.start_worker()
    eventually(lambda: system.count("attempt = 2") == 3, 40)
    seen = [name for turn in turns if (name := task_of(turn)) in visitor.get("/api/tasks").json()]
    eventually(lambda: all(state_of(visitor, name) == "FAILURE" for name in seen), 40)


def routes(method: str) -> list[str]:
    """Flower's paths that take a method, with its parameter filled in."""
    paths = (
        (handler.regex.pattern, handler.handler_class)
        if isinstance(handler, URLSpec)
        else handler[:2]
        for handler in handlers
    )
    return [
        re.sub(r"\(.+\)", "x", path.rstrip("$?"))
        for path, kind in paths
        if method in vars(kind) and not path.startswith(".")
    ]


#: That are no failure of Flower's.
ANSWERS = {200, 302, 400, 404, 503}


@pytest.mark.parametrize("control", ["false", "true"])
def test_whatever_is_asked_of_it_flower_does_or_refuses_in_a_sentence(
    system: Any, start_flower: Callable[..., Any], eventually: Eventually, control: str
) -> None:
    worker = system.start_worker()
    flower = start_flower(TURNMILL_FLOWER__CONTROL=control)
    with visit(flower) as visitor:
        eventually(lambda: visitor.get("/api/workers?refresh=1").json(), 20)
        (name,) = visitor.get("/api/workers").json()
        turn = accept(system.database, system.request("hello"))
        targets = {"x", name, "turnmill.turn.answer", task_of(turn)}
        changes = [path for path in routes("post") if path.startswith("/api/")]
        assert len(changes) >= 14
        for path in changes:
            for target in targets:
                answer = visitor.post(f"{path.removesuffix('x')}{target}?n=1&min=1&max=2&queue=q")
                is_revoke = "/revoke/" in path
                if control == "true" and is_revoke:
                    expected = 200 if target == task_of(turn) else 409
                    assert (answer.status_code, bool(answer.text)) == (expected, True), target
                else:
                    assert answer.status_code == 403, path
                    assert "turnmill workers drain" in answer.text
        urls = {
            path.removesuffix("x") + target if path.endswith("x") else path
            for path in routes("get")
            for target in targets
        }
        # For the answer of a worker that there is not, it waits for seconds.
        with ThreadPoolExecutor(len(targets)) as pool:
            statuses = dict(
                zip(urls, pool.map(lambda url: visitor.get(url).status_code, urls), strict=True)
            )
        assert {url: each for url, each in statuses.items() if each not in ANSWERS} == {}
        page = visitor.get(f"/worker/{name}").text
        for button in ("Shut Down", "Restart Pool", "Grow", "Autoscale", "Cancel Consumer"):
            assert button not in page
    assert system.count("state = 'cancelled'") == (1 if control == "true" else 0)
    assert worker.is_running
    assert "Traceback" not in flower.log.read_text()
    assert "control.refused" not in worker.log.read_text(), "Flower asks nothing that is refused"


def test_with_control_a_running_turn_is_cancelled_and_its_slot_is_free_again(
    system: Any, start_flower: Callable[..., Any], eventually: Eventually
) -> None:
    system.start("relay")
    system.start_worker(**SLOW)
    turn = accept(system.database, system.request("[[tokens=600]]"))
    eventually(lambda: system.count("state = 'running'") == 1)
    for control in ("false", "true"):
        with visit(start_flower(TURNMILL_FLOWER__CONTROL=control)) as visitor:
            page = visitor.get(f"/task/{task_of(turn)}").text
            assert ("task-terminate" in page) is (control == "true")
            if control == "true":
                path = f"/api/task/revoke/{task_of(turn)}?terminate=true"
                assert "Cancelled turn_" in visitor.post(path).json()["message"]
                assert "had already ended" in visitor.post(path).text
                eventually(lambda: state_of(visitor, task_of(turn)) == "REVOKED")
    assert system.count("state = 'cancelled'") == 1


def test_the_commands_that_a_refusal_names_exist() -> None:
    named = re.findall(r"turnmill (\w+) (\w+)", REFUSAL)
    assert len(named) == 3
    for group, name in named:
        assert CliRunner().invoke(app, [group, name, "--help"]).exit_code == 0, (group, name)


def test_nobody_gets_in_without_the_password(flower: Any) -> None:
    for path in ("/", "/workers", "/tasks", "/metrics", "/api/tasks", "/api/workers"):
        assert httpx.get(flower.url + path).status_code == 401, path
        wrong = httpx.get(flower.url + path, auth=("turnmill", "wrong"))
        assert wrong.status_code == 401, path
    assert httpx.post(f"{flower.url}/api/worker/shutdown/any").status_code == 401


def test_the_password_is_not_in_the_process_list_or_the_log(flower: Any) -> None:
    process = psutil.Process(flower.pid)
    lines = [" ".join(one.cmdline()) for one in (process, *process.children(recursive=True))]
    assert "flower" in lines[0]
    assert all(LOGIN[1] not in line for line in lines)
    assert LOGIN[1] not in flower.log.read_text()


STRANGERS = {
    "FLOWER_BASIC_AUTH": "turnmill:of-somebody-else",
    "FLOWER_PORT": "1",
    "FLOWER_UNIX_SOCKET": "/nowhere/socket",
    "FLOWER_AUTO_REFRESH": "neither yes nor no",
    "APP": "nothing.of.that.name",
    "BROKER_URL": "redis://nowhere.invalid:1/0",
    "CONFIG_MODULE": "nothing.of.that.name",
    "LOADER": "nothing.of.that.name",
    "DJANGO_SETTINGS_MODULE": "nothing.of.that.name",
}


@pytest.mark.parametrize(
    "password", ["first,second", "pass:word with spaces", "pässwörd 密码 🔑", '"quoted" %41\\n']
)
def test_the_password_is_the_one_that_was_set_whatever_else_is_around(
    system: Any,
    password: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    (tmp_path / "flowerconfig.py").write_text("basic_auth = ['turnmill:of-somebody-else']\n")
    (tmp_path / "celeryconfig.py").write_text("broker_url = 'redis://nowhere.invalid:1/0'\n")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"TURNMILL_FLOWER__PASSWORD": password, "TURNMILL_FLOWER__PORT": port}
    flower = system.start("flower", **STRANGERS, **variables)
    eventually(lambda: listens(int(port)) or not flower.is_running, 30)
    assert flower.is_running, flower.log.read_text()

    def status(user: str, password: str) -> int:
        return httpx.get(f"http://127.0.0.1:{port}/workers", auth=(user, password)).status_code

    assert status("turnmill", password) == 200
    for other in ("of-somebody-else", "first", "second", "wörng", ""):
        assert status("turnmill", other) == 401
    assert "Traceback" not in flower.log.read_text()


def test_a_port_that_is_taken_is_told_in_a_sentence(system: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {"TURNMILL_FLOWER__PASSWORD": LOGIN[1], "TURNMILL_FLOWER__PORT": port}
        refused = system.start("flower", **variables)
        assert refused.wait(30) == USAGE
    assert f"Flower cannot listen on 127.0.0.1, port {port}" in refused.log.read_text()
    assert "Traceback" not in refused.log.read_text()


@pytest.mark.parametrize("password", [{}, {"TURNMILL_FLOWER__PASSWORD": ""}])
def test_without_a_password_it_does_not_start(system: Any, password: dict[str, str]) -> None:
    refused = system.start("flower", **password)
    assert refused.wait(15) == USAGE
    assert "TURNMILL_FLOWER__PASSWORD" in refused.log.read_text()

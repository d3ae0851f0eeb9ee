"""Flower shows the hints and nothing of what was said, to those who know the password."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from turnmill.infra.embedded.ports import listens
from turnmill.producer.accept import accept

Eventually = Callable[..., None]

LOGIN = ("turnmill", "correct-horse-battery")
#: What a user said, and an echo answers.
WORDS = "xylophone-4711"
USAGE = 64
#: The password of a second broker, which is away.
ALTERNATE = "sesame-4711"


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, valkey_url: str) -> Any:
    return make_system(database_url, f"{valkey_url};redis://:{ALTERNATE}@127.0.0.1:1/0")


@pytest.fixture
def flower(system: Any, eventually: Eventually) -> Any:
    """The process; its address is in `flower.url`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flower = system.start(
        "flower", TURNMILL_FLOWER__PASSWORD=LOGIN[1], TURNMILL_FLOWER__PORT=str(port)
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
def visitor(flower: Any) -> Iterator[httpx.Client]:
    """Somebody who knows the password."""
    with httpx.Client(base_url=flower.url, auth=LOGIN, timeout=10) as client:
        yield client


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

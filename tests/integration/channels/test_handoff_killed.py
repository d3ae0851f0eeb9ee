"""Hand-off while everything is killed: real processes, signed events, and an operator.

API processes and workers are killed with SIGKILL in the middle of it. Slack sends an event until
it is accepted, and the operator's console repeats its calls likewise.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.conversing import prompt_of
from tests.invariants import assert_channel_invariants, assert_invariants
from tests.processes import free_port
from turnmill.infra.mocks.sending import send
from turnmill.infra.mocks.slack.events import sign_callback
from turnmill.infra.mocks.slack.payloads import Payload, Workspace, new_ts
from turnmill.producer.tenants import create_key
from turnmill.producer.turns import read_conversation
from turnmill.schemas.ids import Prefix, show_id

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 - a made-up one
VARIABLES = {"HANDOFF_SECRET": SECRET, "HANDOFF_TOKEN": "xoxb-made-up"}
CONFIGURATION = """
[bots.helper]
model = "{model}"
policies = {{ quiet_s = 0.1 }}

[channels.slack]
kind = "slack"
bot = "helper"
signing_secret = {{ env = "HANDOFF_SECRET" }}
bot_token = {{ env = "HANDOFF_TOKEN" }}
"""

THREADS = 3
ROUNDS = 4
#: Fewer would prove nothing.
MIN_KILLS = 4


@dataclass
class Site:
    """API processes, workers, and who kills them."""

    system: Any
    ports: list[int]
    variables: dict[str, str]
    key: str
    processes: dict[str, Any] = field(default_factory=dict)

    def start(self, name: str) -> None:
        if name.startswith("api"):
            port = str(self.ports[int(name[-1])])
            started = self.system.start("api", TURNMILL_API__PORT=port, **self.variables)
        else:
            slow = {"TURNMILL_ENGINE__ECHO_TOKEN_S": "0.05"}
            patient = {"TURNMILL_WORKER__QUARANTINE_AFTER": "100"}
            started = self.system.start("worker", **slow, **patient)
        self.processes[name] = started

    def kill_now_and_then(self, chance: random.Random, is_over: threading.Event) -> int:
        kills = 0
        while not is_over.wait(0.6):
            name = chance.choice(list(self.processes))
            self.processes[name].kill()
            self.start(name)
            kills += 1
        return kills

    def url(self, chance: random.Random) -> str:
        return f"http://127.0.0.1:{chance.choice(self.ports)}"

    def tell(self, chance: random.Random, callback: Payload) -> None:
        """As Slack does, but in a hurry: until it is accepted."""
        while not send(
            f"{self.url(chance)}/channels/slack", sign_callback(SECRET, callback)
        ).is_accepted:
            time.sleep(0.05)

    def call(self, chance: random.Random, path: str, **body: Any) -> None:
        """As the console of an operator does: until it is answered."""
        while True:
            try:
                answer = httpx.post(
                    self.url(chance) + path, json=body or None, timeout=5,
                    headers={"Authorization": f"Bearer {self.key}"},
                )  # fmt: skip
            except httpx.HTTPError:
                time.sleep(0.05)
                continue
            if answer.status_code < 500:
                assert answer.status_code in (200, 204), answer.text
                return
            time.sleep(0.05)

    def now(self) -> datetime:
        (row,) = self.system.database.run("SELECT clock_timestamp() AS now")
        moment: datetime = row.now
        return moment


@pytest.fixture
def site(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    tmp_path: Path,
    eventually: Callable[..., None],
) -> Site:
    system = make_system(database_url, valkey_url)
    file = tmp_path / "turnmill.toml"
    file.write_text(CONFIGURATION.format(model=system.settings.engine.model_name))
    variables = {"TURNMILL_CONFIG": str(file), **VARIABLES}
    key = create_key(system.database, system.tenant_id, "operator")
    site = Site(system, [free_port(), free_port()], variables, key)
    system.start("relay")
    for name in ("api0", "api1", "worker0", "worker1"):
        site.start(name)
    eventually(lambda: site.processes["api0"].says("api.started"), 30)
    return site


def test_nothing_is_lost_and_the_bot_is_silent_while_a_person_answers(site: Site) -> None:
    is_over = threading.Event()
    with ThreadPoolExecutor(THREADS + 1) as pool:
        killing = pool.submit(site.kill_now_and_then, random.Random(7), is_over)
        talks = [pool.submit(Talk(site, number).hold) for number in range(THREADS)]
        try:
            held = [talk.result(180) for talk in talks]
        finally:
            is_over.set()
        assert killing.result(30) >= MIN_KILLS
    site.system.wait_until_settled(60)
    assert_invariants(site.system.database)
    assert_channel_invariants(site.system.database)
    for talk in held:
        talk.check()


class Talk:
    """A user's thread, in which a person answers for a while, again and again."""

    def __init__(self, site: Site, number: int) -> None:
        self._site = site
        self._number = number
        self._chance = random.Random(number)
        self._workspace = Workspace(user=f"U{number}")
        self._thread = new_ts()
        self._said: list[str] = []
        self._answers: list[str] = []
        #: While a person answered, by PostgreSQL's clock.
        self._spans: list[tuple[datetime, datetime]] = []

    def hold(self) -> "Talk":
        site, chance = self._site, self._chance
        for _ in range(ROUNDS):
            self._say(2)
            time.sleep(chance.uniform(0, 1.0))
            path = f"/conversations/{show_id(Prefix.CONVERSATION, self._conversation_id)}"
            site.call(chance, f"{path}/hand-off", because="A test.")
            began_at = site.now()
            self._say(2)
            self._answers.append(f"answer {len(self._answers)} in {self._number}")
            site.call(chance, f"{path}/messages", content=self._answers[-1], author="ada")
            time.sleep(chance.uniform(0.5, 1.5))
            self._spans.append((began_at, site.now()))
            site.call(chance, f"{path}/resume")
        self._say(1)
        return self

    def check(self) -> None:
        database = self._site.system.database
        turns = read_conversation(database, self._site.system.tenant_id, self._conversation_id)
        # One for each message that is answered, or that a person was there for, and each answer.
        assert {turn.state for turn in turns} <= {"completed", "handed_off"}
        for began_at, ended_at in self._spans:
            replied = [turn.settled_at for turn in turns if turn.state == "completed"]
            assert not [at for at in replied if at is not None and began_at <= at <= ended_at]
        prompt = prompt_of(database, turns[-1])
        spoken = [line for role, text in prompt if role == "user" for line in text.split("\n")]
        assert spoken == self._said
        told = [line for role, text in prompt if role == "assistant" for line in text.split("\n")]
        answers = dict.fromkeys(line for line in told if line.startswith("answer "))
        assert list(answers) == self._answers

    def _say(self, count: int) -> None:
        for _ in range(count):
            text = f"message {len(self._said)} of {self._number} " + "and so on " * 8
            self._said.append(text.strip())
            event = self._workspace.mention(self._said[-1], thread_ts=self._thread)
            self._site.tell(self._chance, self._workspace.callback(event))

    @property
    def _conversation_id(self) -> UUID:
        (row,) = self._site.system.database.run(
            "SELECT conversation_id FROM channel_threads WHERE author = %s",
            (self._workspace.user,),
        )
        conversation_id: UUID = row.conversation_id
        return conversation_id

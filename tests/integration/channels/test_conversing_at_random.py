"""Whatever people, operators and workers do in whatever order, the tables keep their promises.

Steps are drawn by chance from a seed that the test's name shows. Workers are drawn too: they claim,
stream, and settle in the middle of everything.
"""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from threading import Event
from typing import Any

import pytest

from tests.conversing import Replica, message
from tests.invariants import assert_channel_invariants, assert_invariants
from turnmill.producer.cancel import cancel
from turnmill.producer.conversations import set_policies
from turnmill.producer.converse import Kind, Received
from turnmill.producer.handoff import answer, hand_off, resume
from turnmill.schemas.channels.events import Answering, Change, Side
from turnmill.schemas.channels.policies import DoubleTexting, Policies
from turnmill.schemas.errors import NotHandedOff
from turnmill.schemas.outcomes import Answered, Failed, Snoozed
from turnmill.schemas.turns import Reply, Usage
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.settle import Settler

MakeReplica = Callable[[], Replica]

#: Locks the turn, as a worker's stream does.
_KEEP = """
WITH owned AS (
    SELECT id FROM turns WHERE id = %s AND attempt = %s AND state = 'running' FOR SHARE
)
INSERT INTO chunks (turn_id, position, text, token_count)
SELECT o.id, coalesce(max(c.position) + 1, 0), 'word ', 1
FROM owned o LEFT JOIN chunks c ON c.turn_id = o.id GROUP BY o.id
"""


class Life:
    """One replica, one worker, and the people who use them."""

    def __init__(self, replica: Replica, seed: int, policies: list[DoubleTexting]) -> None:
        self.replica = replica
        self.chance = random.Random(seed)
        self._seed = seed
        self._policies = policies
        self._numbers = count(1)
        self._claims: list[Claim] = []
        self._events: list[Any] = []
        worker, model = replica.settings.worker, replica.settings.engine.model_name
        self._leases = Leases(replica.database, worker, model=model, engine="echo")
        self._settler = Settler(replica.database, max_attempts=2, give_up=Event())
        #: What became of each message, by its text.
        self.heard: dict[str, Received] = {}

    def say(self) -> None:
        text = f"m{self._seed}-{next(self._numbers)}."
        author = self.chance.choice(["U1", "U1", "U1", "U2"])
        event = message(text, thread=self._thread(), author=author, event_id=text)
        self._events.append(event)
        policy = self.chance.choice(self._policies)
        received = self.replica.receive(event, double_texting=policy, quiet_s=0)
        self.heard[text] = received

    def say_again(self) -> None:
        if self._events:
            event = self.chance.choice(self._events)
            assert self.replica.receive(event).kind is Kind.DUPLICATE

    def decide(self) -> None:
        """Something happens in a thread of a platform where people decide who answers."""
        number = next(self._numbers)
        text = f"d{self._seed}-{number}."
        is_answer = self.chance.random() < 0.3
        # Some events come late.
        as_of = float(number - self.chance.randrange(3))
        answering = Answering(by=self.chance.choice(list(Side)), as_of=max(as_of, 0.0))
        said = message(text, thread="D", author="ADA" if is_answer else "U1", event_id=text)
        if self.chance.random() < 0.4:
            where = {"event_id": text, "address": said.address, "author": "desk"}
            self.replica.receive(Change(**where, answering=answering))
            return
        who = {"answering": answering, "is_answer": is_answer, "begins": not is_answer}
        self.heard[text] = self.replica.receive(said.model_copy(update=who), quiet_s=0)

    def press(self, *names: str) -> None:
        self.replica.command(self.chance.choice(names), thread=self._thread())

    def claim(self) -> None:
        rows = self.replica.rows("SELECT turn_id FROM outbox WHERE lane <> 'delivery'")
        if rows and (claim := self._leases.claim(self.chance.choice(rows).turn_id)):
            self._claims.append(claim)

    def stream(self) -> None:
        if self._claims:
            claim = self.chance.choice(self._claims)
            self.replica.database.run(_KEEP, (claim.turn_id, claim.attempt))

    def settle(self) -> None:
        if self._claims:
            claim = self._claims.pop(self.chance.randrange(len(self._claims)))
            reply = Reply(content="yes", finish_reason="stop", usage=Usage())
            outcomes = [Answered(reply), Answered(reply), Failed("bad", "No."), Snoozed(0.0, "x")]
            self._settler.settle(claim, self.chance.choice(outcomes))

    def operate(self) -> None:
        rows = self.replica.rows("SELECT id, tenant_id FROM conversations")
        if not rows:
            return
        database, row = self.replica.database, self.chance.choice(rows)
        match self.chance.randrange(5):
            case 0:
                hand_off(database, row.tenant_id, row.id, "Too hard.")
            case 1 | 2:
                resume(database, row.tenant_id, row.id)
            case 3:
                with suppress(NotHandedOff):
                    answer(database, row.tenant_id, row.id, "An answer.", "ada")
            case 4:
                wanted = Policies(hands_off_failures=self.chance.random() < 0.5)
                set_policies(database, row.tenant_id, row.id, wanted)

    def cancel(self) -> None:
        rows = self.replica.rows("SELECT id, tenant_id FROM turns ORDER BY id DESC LIMIT 5")
        if rows:
            row = self.chance.choice(rows)
            cancel(self.replica.database, row.tenant_id, row.id)

    def close(self) -> None:
        self._leases.close()

    def _thread(self) -> str:
        return self.chance.choice(["A", "B", "C"])


def _check(replica: Replica) -> None:
    assert_invariants(replica.database)
    assert_channel_invariants(replica.database)


@pytest.mark.parametrize("seed", range(4))
def test_any_steps_in_any_order_keep_the_promises(replica: Replica, seed: int) -> None:
    life = Life(replica, seed, list(DoubleTexting))
    steps: list[Callable[[], None]] = [
        life.say, life.say, life.say, life.say_again, life.claim, life.claim, life.stream,
        life.stream, life.settle, life.operate, life.cancel, life.decide, life.decide,
        lambda: life.press("stop", "reset", "hand_off", "resume", "resume"),
    ]  # fmt: skip
    for _ in range(250):
        life.chance.choice(steps)()
        _check(replica)
    life.close()
    assert _lost(replica, life.heard) == []


@pytest.mark.parametrize("seed", range(2))
def test_nothing_that_is_said_is_lost_where_nobody_takes_it_back(
    replica: Replica, seed: int
) -> None:
    """Each message stands in exactly one turn that was not cancelled."""
    kept = [DoubleTexting.ENQUEUE, DoubleTexting.COLLECT, DoubleTexting.INTERRUPT]
    life = Life(replica, seed, kept)
    steps: list[Callable[[], None]] = [
        life.say, life.say, life.say, life.claim, life.stream, life.settle, life.operate,
        lambda: life.press("hand_off", "resume", "resume"),
    ]  # fmt: skip
    for _ in range(250):
        life.chance.choice(steps)()
    life.close()
    _check(replica)
    assert _lost(replica, life.heard) == []
    rows = replica.rows("SELECT input::text AS said FROM turns WHERE state <> 'cancelled'")
    said = "".join(row.said for row in rows)
    assert {text: said.count(text) for text in life.heard} == dict.fromkeys(life.heard, 1)


def test_replicas_and_workers_at_once_keep_the_promises(make_replica: MakeReplica) -> None:
    lives = [Life(make_replica(), seed, list(DoubleTexting)) for seed in range(4)]

    def live(life: Life) -> None:
        steps: list[Callable[[], None]] = [
            life.say, life.say, life.say_again, life.claim, life.claim, life.stream, life.settle,
            life.operate, life.cancel, life.decide,
            lambda: life.press("stop", "reset", "hand_off", "resume"),
        ]  # fmt: skip
        for _ in range(150):
            life.chance.choice(steps)()

    with ThreadPoolExecutor(len(lives)) as pool:
        for done in [pool.submit(live, life) for life in lives]:
            done.result(60)
    for life in lives:
        life.close()
        assert _lost(life.replica, life.heard) == []
    _check(lives[0].replica)


def _lost(replica: Replica, heard: dict[str, Received]) -> list[str]:
    """Messages that are not in the turn that they are said to have become, or to be a part of."""
    rows = replica.rows("SELECT id, input::text AS said FROM turns")
    said = {row.id: row.said for row in rows}
    turns = {text: received.turn_id for text, received in heard.items() if received.turn_id}
    return [text for text, turn_id in turns.items() if text not in said.get(turn_id, "")]

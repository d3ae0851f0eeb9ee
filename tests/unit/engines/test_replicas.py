"""The pool over replicas: who gets a turn, and where a turn goes whose replica fails."""

import time
from collections.abc import Callable, Iterator
from threading import Event

import pytest

from turnmill.schemas.errors import (
    ContextOverflow,
    EngineAway,
    EngineBusy,
    EngineRefused,
    EngineUnavailable,
    Unanswered,
)
from turnmill.schemas.turns import DEFAULT_PARAMS, GenerationParams, Message, Role
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote import control
from turnmill.workers.engines.remote.members import FAILURES_TO_OPEN, MOST_ASKED_S, OPEN_S
from turnmill.workers.engines.remote.replicas import ReplicaPool
from turnmill.workers.turn.abort import Abort

#: Seconds that no test waits unless what should end the wait does not.
FAR_S = 30.0
WORDS = ["one", " two", " three", " four"]
PROMPT = Prompt((Message(role=Role.USER, content="Count."),))
PARAMS = GenerationParams(temperature=0, max_tokens=10).over(DEFAULT_PARAMS)


class CountingReplica:
    """Says WORDS after the prefix; fails where it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_ready = True
        self.checks = 0
        #: Lets checks wait, and does this meanwhile.
        self.is_silent = False
        self.while_silent: Callable[[], object] = lambda: None
        #: Words after which it breaks off; None for never.
        self.breaks_after: int | None = None
        self.ends_quietly = False
        self.error: Exception = EngineUnavailable("it refuses connections")
        self.asked: list[tuple[str, int | None]] = []
        #: What it does at a control question; by itself it answers, or fails as at a turn.
        self.at_control: Callable[[], object] = lambda: None
        self.controls = 0

    def check(self) -> None:
        self.checks += 1
        if self.is_silent:
            self.while_silent()
            raise Unanswered("it does not answer in time")
        if not self.is_ready:
            raise EngineUnavailable("it does not answer")

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        if prompt.messages == PROMPT.messages:
            self.asked.append((prompt.prefix, params.max_tokens))
        else:
            self.controls += 1
            self.at_control()
        begin = next(n for n in range(5) if "".join(WORDS[:n]) == prompt.prefix)
        for count, word in enumerate(WORDS[begin:]):
            if count == self.breaks_after:
                if self.ends_quietly:
                    return
                raise self.error
            if abort.is_set():
                return
            yield Chunk(word, 1)
        yield Chunk("", 0, "stop", prompt_tokens=5 + begin, cached_tokens=5 + begin)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def replicas() -> list[CountingReplica]:
    return [CountingReplica(name) for name in ("a", "b", "c")]


@pytest.fixture
def clock() -> Clock:
    return Clock()


MakePool = Callable[..., ReplicaPool[CountingReplica]]


@pytest.fixture
def make_pool(replicas: list[CountingReplica], clock: Clock) -> Iterator[MakePool]:
    pools = []

    def make(
        can_continue: bool = True, check_every_s: float = 3600
    ) -> ReplicaPool[CountingReplica]:
        pool = ReplicaPool(
            replicas, can_continue=can_continue, check_every_s=check_every_s, clock=clock
        )
        pools.append(pool)
        pool.start()
        return pool

    yield make
    for pool in pools:
        pool.close()


def generate(
    pool: ReplicaPool[CountingReplica], params: GenerationParams = PARAMS, prompt_tokens: int = 5
) -> Iterator[Chunk]:
    return pool.generate(PROMPT, params, Abort(), prompt_tokens=prompt_tokens)


def say(pool: ReplicaPool[CountingReplica]) -> str:
    return "".join(chunk.text for chunk in generate(pool))


def test_a_turn_goes_to_the_replica_that_owes_the_fewest_tokens(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool()
    turns = []
    for tokens in (100, 10, 50):
        turns.append(generate(pool, prompt_tokens=tokens))
        next(turns[-1])
    say(pool)
    assert [len(replica.asked) for replica in replicas] == [1, 2, 1]
    for turn in turns:
        turn.close()  # type: ignore[attr-defined]
    for _ in range(3):
        say(pool)
    assert [len(replica.asked) for replica in replicas] == [2, 3, 2]


def test_a_turn_goes_on_elsewhere_in_the_middle_of_its_reply(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool()
    replicas[0].breaks_after, replicas[1].breaks_after = 2, 1
    replicas[1].ends_quietly = True
    chunks = list(generate(pool))
    assert "".join(chunk.text for chunk in chunks) == "".join(WORDS)
    assert [replica.asked for replica in replicas] == [
        [("", 10)],
        [("one two", 8)],
        [("one two three", 7)],
    ]
    assert chunks[-1] == Chunk("", 0, "stop", prompt_tokens=5, cached_tokens=5)


def test_a_reply_that_cannot_be_continued_fails_once_it_has_begun(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool(can_continue=False)
    replicas[0].breaks_after, replicas[1].breaks_after = 0, 2
    with pytest.raises(EngineUnavailable, match="cannot go on elsewhere"):
        say(pool)
    assert replicas[2].asked == []


def test_a_reply_that_had_used_up_its_tokens_is_complete(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool()
    replicas[0].breaks_after = 2
    chunks = list(generate(pool, PARAMS.model_copy(update={"max_tokens": 2})))
    assert [chunk.text for chunk in chunks] == ["one", " two", ""]
    assert chunks[-1] == Chunk("", finish_reason="length", prompt_tokens=5)


def test_a_refused_turn_is_not_tried_elsewhere_and_counts_against_nobody(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool()
    for replica in replicas:
        replica.breaks_after, replica.error = 0, ContextOverflow(param="messages")
    for _ in range(3 * FAILURES_TO_OPEN):
        with pytest.raises(ContextOverflow):
            say(pool)
    replicas[0].breaks_after = replicas[1].breaks_after = replicas[2].breaks_after = None
    assert say(pool) == "".join(WORDS)
    assert sum(len(replica.asked) for replica in replicas) == 3 * FAILURES_TO_OPEN + 1


def test_who_is_left_out_is_named_with_the_reason(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    replicas[0].is_ready = False
    pool = make_pool()
    replicas[1].breaks_after = replicas[2].breaks_after = 0
    with pytest.raises(EngineUnavailable) as caught:
        say(pool)
    for reason in ("a: it does not answer", "b: it refuses", "c: it refuses"):
        assert reason in caught.value.message
    assert replicas[0].asked == []


def test_a_failing_replica_gets_no_turns_until_one_has_tried_it(
    make_pool: MakePool, replicas: list[CountingReplica], clock: Clock
) -> None:
    pool = make_pool()
    broken = replicas[0]
    broken.breaks_after = 0
    for _ in range(3 * FAILURES_TO_OPEN):
        assert say(pool) == "".join(WORDS)
    assert len(broken.asked) == FAILURES_TO_OPEN

    clock.now += OPEN_S + 1
    for _ in range(3):
        say(pool)
    assert len(broken.asked) == FAILURES_TO_OPEN + 1

    clock.now += OPEN_S + 1
    broken.breaks_after = None
    probing = generate(pool)
    next(probing)
    assert len(broken.asked) == FAILURES_TO_OPEN + 2
    for _ in range(3):
        say(pool)
    assert len(broken.asked) == FAILURES_TO_OPEN + 2
    assert len(list(probing)) == len(WORDS)
    for _ in range(3):
        say(pool)
    assert len(broken.asked) == FAILURES_TO_OPEN + 3


@pytest.mark.parametrize(("asked_s", "kept_s"), [(40.0, 40.0), (1e6, MOST_ASKED_S)])
def test_a_replica_that_asks_for_a_pause_gets_it_at_its_first_failure(
    make_pool: MakePool,
    replicas: list[CountingReplica],
    clock: Clock,
    asked_s: float,
    kept_s: float,
) -> None:
    pool = make_pool()
    busy = replicas[0]
    busy.breaks_after, busy.error = 0, EngineBusy("it answers 429", retry_after_s=asked_s)
    say(pool)
    busy.breaks_after = None
    clock.now = kept_s - 1
    for _ in range(4):
        assert say(pool) == "".join(WORDS)
    assert (len(busy.asked), busy.controls) == (1, 1)
    clock.now = kept_s + 1
    for _ in range(4):
        say(pool)
    assert len(busy.asked) > 1


def test_an_engine_asks_for_the_shortest_pause_of_its_replicas(
    make_pool: MakePool, replicas: list[CountingReplica], clock: Clock
) -> None:
    pool = make_pool()
    for asked_s, replica in zip((40.0, 20.0, 30.0), replicas, strict=True):
        replica.breaks_after = 0
        replica.error = EngineBusy("it answers 429", retry_after_s=asked_s)
    with pytest.raises(EngineAway) as tried:
        say(pool)
    clock.now = 5.0
    with pytest.raises(EngineAway, match="it answers 429; it asks for a pause") as passed_over:
        pool.check()
    assert (tried.value.retry_after_s, passed_over.value.retry_after_s) == (20.0, 15.0)
    assert [len(replica.asked) for replica in replicas] == [1, 1, 1]
    clock.now = 21.0
    pool.check()


def test_a_pause_for_one_turn_is_that_turns_alone(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    del replicas[1:]
    pool = make_pool()

    def answer() -> None:
        replicas[0].breaks_after = None

    replicas[0].breaks_after = 0
    replicas[0].error = EngineBusy("it answers 429", retry_after_s=40.0)
    replicas[0].at_control = answer
    with pytest.raises(EngineBusy) as caught:
        say(pool)
    assert caught.value.retry_after_s == 40.0
    assert say(pool) == "".join(WORDS)


def test_a_replica_that_comes_back_is_used_again(
    make_pool: MakePool, replicas: list[CountingReplica], eventually: Callable[..., None]
) -> None:
    for replica in replicas[1:]:
        replica.is_ready = False
    pool = make_pool(check_every_s=0.01)
    say(pool)
    say(pool)
    assert [len(replica.asked) for replica in replicas] == [2, 0, 0]
    replicas[1].is_ready = True
    eventually(lambda: say(pool) and replicas[1].asked)
    replicas[2].is_ready = True
    replicas[0].is_ready = replicas[1].is_ready = False
    eventually(lambda: say(pool) and replicas[2].asked)


def test_a_check_unanswered_while_tokens_come_says_that_a_replica_is_busy(
    make_pool: MakePool,
    replicas: list[CountingReplica],
    clock: Clock,
    eventually: Callable[..., None],
) -> None:
    del replicas[1:]
    pool = make_pool(check_every_s=0.01)
    replica = replicas[0]
    replica.while_silent = lambda: say(pool)
    replica.is_silent = True
    before = replica.checks
    eventually(lambda: replica.checks > before + 2)
    assert say(pool) == "".join(WORDS)
    replica.while_silent = lambda: None

    def is_given_up() -> bool:
        try:
            say(pool)
        except EngineUnavailable as error:
            return "in time" in error.message
        clock.now += 1
        return False

    eventually(is_given_up)


def test_questions_that_a_busy_replica_leaves_unanswered_do_not_open_its_circuit(
    make_pool: MakePool, replicas: list[CountingReplica], clock: Clock
) -> None:
    del replicas[1:]
    pool = make_pool()
    served = generate(pool)

    def wait(_: CountingReplica) -> None:
        next(served, None)
        raise Unanswered("it does not answer in time")

    for _ in range(FAILURES_TO_OPEN):
        clock.now += 1
        with pytest.raises(EngineUnavailable, match="in time"):
            pool.call(wait)
    assert say(pool) == "".join(WORDS)
    list(served)
    for _ in range(FAILURES_TO_OPEN):
        clock.now += 1
        with pytest.raises(EngineUnavailable, match="in time"):
            pool.call(wait)
    with pytest.raises(EngineUnavailable, match="in time"):
        say(pool)


@pytest.fixture
def held() -> Iterator[Event]:
    """Not set before the test's end: what waits for it ignores every abort."""
    event = Event()
    yield event
    event.set()


def test_a_control_question_ends_with_its_turn_and_tells_nothing_then(
    make_pool: MakePool,
    replicas: list[CountingReplica],
    held: Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "CONTROL_S", FAR_S)
    del replicas[1:]
    pool = make_pool(can_continue=False)
    replicas[0].breaks_after, replicas[0].error = 1, EngineRefused("it answers 403")
    began_at = time.monotonic()
    for _ in range(FAILURES_TO_OPEN):
        abort = Abort()

        def abort_and_wait(abort: Abort = abort) -> None:
            abort.set()
            held.wait()

        replicas[0].at_control = abort_and_wait
        chunks = pool.generate(PROMPT, PARAMS, abort, prompt_tokens=5)
        assert [each.text for each in chunks] == ["one"]
    assert time.monotonic() - began_at < FAR_S
    assert replicas[0].controls == FAILURES_TO_OPEN
    pool.check()


def test_a_silent_replica_fails_after_the_time_of_the_control_question(
    make_pool: MakePool,
    replicas: list[CountingReplica],
    held: Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that ignores the abort."""
    monkeypatch.setattr(control, "CONTROL_S", 0.05)
    del replicas[1:]
    pool = make_pool()
    replicas[0].breaks_after, replicas[0].error = 0, EngineRefused("it answers 403")
    replicas[0].at_control = held.wait
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(EngineAway):
            say(pool)
    with pytest.raises(EngineAway, match="times in a row"):
        pool.check()


def test_a_control_question_unanswered_while_tokens_come_says_that_a_replica_is_slow(
    make_pool: MakePool, replicas: list[CountingReplica], clock: Clock
) -> None:
    del replicas[1:]
    (replica,) = replicas
    pool = make_pool()
    served = generate(pool)
    next(served)

    def serve_others() -> None:
        next(served)
        raise Unanswered("it said nothing in time")

    replica.breaks_after, replica.error = 0, EngineRefused("it answers 403")
    replica.at_control = serve_others
    for _ in range(FAILURES_TO_OPEN):
        clock.now += 1
        with pytest.raises(EngineUnavailable) as caught:
            say(pool)
        assert not isinstance(caught.value, EngineAway)
    pool.check()

    # A refusal is an answer, whatever others get: a key that was revoked lets their streams end.
    def refuse() -> None:
        clock.now += 1
        raise EngineRefused("it answers 401")

    replica.at_control = refuse
    with pytest.raises(EngineAway):
        say(pool)


def test_a_call_asks_one_control_question_at_most(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool()

    def refuse() -> None:
        raise EngineRefused("it answers 401")

    for replica in replicas:
        replica.at_control = refuse

    def ask(replica: CountingReplica) -> None:
        refuse()

    for count in range(1, 3 * FAILURES_TO_OPEN + 1):
        with pytest.raises(EngineAway):
            pool.call(ask)
        assert sum(replica.controls for replica in replicas) == count
    with pytest.raises(EngineAway, match="times in a row"):
        pool.check()


def test_a_call_that_every_replica_refuses_and_one_answers_others_harms_none(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    pool = make_pool()

    def ask(replica: CountingReplica) -> None:
        raise EngineRefused("it answers 403")

    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(EngineUnavailable) as caught:
            pool.call(ask)
        assert not isinstance(caught.value, EngineAway)
    assert sum(replica.controls for replica in replicas) == 2 * FAILURES_TO_OPEN
    assert say(pool) == "".join(WORDS)


def test_no_replica_ready_at_the_start_is_an_error(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    for replica in replicas:
        replica.is_ready = False
    with pytest.raises(EngineUnavailable, match=r"a: it does not answer; b: .*; c: "):
        make_pool()


def test_a_question_is_put_to_another_replica_too(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    asked = []

    def ask(replica: CountingReplica) -> int:
        asked.append(replica.name)
        if len(asked) < 3:
            raise EngineUnavailable("it is busy")
        return 42

    assert make_pool().call(ask) == 42
    assert asked == ["a", "b", "c"]


def test_an_aborted_turn_is_not_tried_elsewhere(
    make_pool: MakePool, replicas: list[CountingReplica]
) -> None:
    abort = Abort()
    chunks = make_pool().generate(PROMPT, PARAMS, abort, prompt_tokens=5)
    next(chunks)
    abort.set()
    assert list(chunks) == []
    assert sum(len(replica.asked) for replica in replicas) == 1


def test_a_closed_pool_takes_no_turns(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        say(pool)

"""A pool over the replicas of a remote engine: which one gets a turn, and what if it fails.

A turn goes to the usable replica that owes the fewest tokens. One that fails its health check, that
asks for a pause, or whose circuit is open, is passed over (the circuit breaker of Nygard's "Release
It!", 2007). One that leaves a question unanswered while it delivers tokens is busy, and fails
neither. Nor does one that fails at a turn and answers the control question: the failure is that
turn's. A turn whose replica fails goes on at another one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event, Lock, Thread
from typing import Generic, Protocol, TypeVar

import structlog

from turnmill.schemas.errors import (
    EngineAway,
    EngineBrokeOff,
    EngineBusy,
    EngineRefused,
    EngineUnavailable,
    TurnmillError,
)
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.remote.control import answers, can_be_the_turns
from turnmill.workers.engines.remote.members import Member, Reasons, no_replica
from turnmill.workers.turn.abort import Abort, Interrupted, heeded

log = structlog.get_logger(__name__)


class Replica(Protocol):
    """One server. Thread-safe; its errors are ours, and `EngineUnavailable` is the only one that
    says something about the server: any other one is the turn's own.
    """

    @property
    def name(self) -> str:
        """What errors and logs call it: its address."""
        ...

    def check(self) -> None:
        """Return within a few seconds if it is ready. Raises `EngineUnavailable` if it is not."""
        ...

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        """As `Engine.generate`."""
        ...


ReplicaT = TypeVar("ReplicaT", bound=Replica)
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Debt(Generic[ReplicaT]):
    """What a replica that was chosen owes for one call."""

    member: Member[ReplicaT]
    #: Tokens still to come.
    tokens: int
    #: The call that tries whether the replica works again.
    is_probe: bool
    #: When the replica was chosen (clock of the pool).
    began_at: float
    #: The replica did what it was asked for.
    is_answered: bool = False


@dataclass(slots=True)
class _Progress:
    """What a turn got, from whichever replicas."""

    prompt: Prompt
    params: GenerationParams
    text: str = ""
    token_count: int = 0
    #: Why each replica that was tried, or could not be, does not answer.
    reasons: "Reasons" = field(default_factory=dict)

    @property
    def left(self) -> int | None:
        """Tokens that the reply may still take."""
        limit = self.params.max_tokens
        return None if limit is None else limit - self.token_count

    def rest(self) -> tuple[Prompt, GenerationParams]:
        """What to ask the next replica for."""
        prompt = replace(self.prompt, prefix=self.prompt.prefix + self.text)
        return prompt, self.params.model_copy(update={"max_tokens": self.left})

    def add(self, chunk: Chunk, before: int) -> Chunk:
        """The chunk as the turn's reader is to see it; `before` tokens came from others."""
        self.text += chunk.text
        self.token_count += chunk.token_count
        if chunk.finish_reason is None or not before:
            return chunk
        # For the replica that ended the reply, what others said belonged to the prompt.
        prompt_tokens = max(0, chunk.prompt_tokens - before)
        cached_tokens = min(chunk.cached_tokens, prompt_tokens)
        return replace(chunk, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)


class ReplicaPool(Generic[ReplicaT]):
    """Replicas of one model; `can_continue` as the engine's own."""

    def __init__(
        self,
        replicas: Sequence[ReplicaT],
        *,
        can_continue: bool,
        check_every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = [Member(replica) for replica in replicas]
        self.can_continue = can_continue
        self._check_every_s = check_every_s
        self._clock = clock
        self._lock = Lock()
        self._choices = 0
        self._closed = Event()
        self._threads: list[Thread] = []

    @property
    def owed_tokens(self) -> int:
        """What all replicas together have been asked for and have not delivered."""
        with self._lock:
            return sum(member.owed_tokens for member in self._members)

    def start(self) -> None:
        """Check all replicas, and go on checking them in the background.

        Raises:
            EngineUnavailable: none of them is ready.
        """
        checks = [Thread(target=self._check, args=[member]) for member in self._members]
        for thread in checks:
            thread.start()
        for thread in checks:
            thread.join()
        self.check()
        for member in self._members:
            name = f"replica-check-{member.replica.name}"
            thread = Thread(target=self._watch, args=[member], name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def check(self) -> None:
        """Return if a replica would get a turn now. Raises `EngineAway`."""
        with self._lock:
            now = self._clock()
            passed_over: Reasons = {
                member: away
                for member in self._members
                if (away := member.passed_over(now)) is not None
            }
        if len(passed_over) == len(self._members):
            raise no_replica(passed_over)

    def call(self, ask: Callable[[ReplicaT], ResultT]) -> ResultT:
        """What the first replica that can says, in the order in which they would get a turn.

        Raises:
            EngineUnavailable: no replica is left; the sentence names why, for each.
            Interrupted: the abort that is heeded was set.
        """
        reasons: Reasons = {}
        abort, no_more_questions = heeded(), Abort()
        with abort.telling(no_more_questions.set):
            while not abort.is_set():
                with self._chosen(reasons, no_more_questions) as debt:
                    result = ask(debt.member.replica)
                    debt.is_answered = True
                    return result
                no_more_questions.set()  # somebody waits for a number: one is enough
        raise Interrupted

    def generate(
        self, prompt: Prompt, params: GenerationParams, abort: Abort, *, prompt_tokens: int
    ) -> Iterator[Chunk]:
        """As `Engine.generate`; `prompt_tokens`, roughly, is what the turn weighs in balancing.

        A turn whose replica fails goes on at the next one: after the text that was yielded if
        the replicas can continue, else only if nothing was.

        Raises:
            EngineUnavailable: no replica is left; the sentence names why, for each.
        """
        progress = _Progress(prompt, params)
        while not abort.is_set():
            if progress.left is not None and progress.left < 1:
                yield Chunk("", finish_reason="length", prompt_tokens=prompt_tokens)
                return
            tokens = prompt_tokens + progress.token_count + (progress.left or 0)
            with self._chosen(progress.reasons, abort, tokens) as debt:
                yield from self._read(debt, progress, abort)
                return
            if progress.text and not self.can_continue and not abort.is_set():
                raise no_replica(
                    progress.reasons, " The reply had begun and cannot go on elsewhere."
                )

    def close(self) -> None:
        """Stop the health checks; refuse new turns. The replicas are their owner's to close."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _read(self, debt: _Debt[ReplicaT], progress: _Progress, abort: Abort) -> Iterator[Chunk]:
        before = progress.token_count
        prompt, params = progress.rest()
        for chunk in debt.member.replica.generate(prompt, params, abort):
            debt.is_answered = chunk.finish_reason is not None
            self._reduce(debt, chunk.token_count, is_delivered=True)
            yield progress.add(chunk, before)
            if debt.is_answered:
                return
        if not abort.is_set():
            raise EngineBrokeOff("it ended the stream in the middle of the reply")

    @contextmanager
    def _chosen(self, reasons: Reasons, abort: Abort, tokens: int = 0) -> Iterator[_Debt[ReplicaT]]:
        """A replica for one call. Its `EngineUnavailable` ends the block, kept as its reason."""
        debt = self._choose(reasons, tokens)
        try:
            yield debt
        except EngineUnavailable as error:
            if self._closed.is_set():
                raise
            reasons[debt.member] = self._judged(debt, error, abort)
        except TurnmillError:
            debt.is_answered = True  # the turn is wrong, not the replica
            raise
        finally:
            self._reduce(debt, debt.tokens)
            self._end_probe(debt)

    def _choose(self, reasons: Reasons, tokens: int) -> _Debt[ReplicaT]:
        """The usable replica, not in `reasons` yet, that owes least; why not the others."""
        if self._closed.is_set():
            raise EngineAway("The engine is closed.")
        with self._lock:
            now = self._clock()
            usable = []
            for member in self._members:
                if member in reasons:
                    continue
                if away := member.passed_over(now):
                    reasons[member] = away
                else:
                    usable.append(member)
            if not usable:
                raise no_replica(reasons)
            chosen = min(usable, key=lambda member: (member.owed_tokens, member.chosen_at))
            self._choices += 1
            chosen.chosen_at = self._choices
            chosen.owed_tokens += tokens
            chosen.is_probed = chosen.is_open
            return _Debt(chosen, tokens, is_probe=chosen.is_probed, began_at=now)

    def _reduce(self, debt: _Debt[ReplicaT], tokens: int, is_delivered: bool = False) -> None:
        with self._lock:
            if is_delivered:
                debt.member.delivered_at = self._clock()
            debt.tokens -= tokens
            debt.member.owed_tokens -= tokens

    def _end_probe(self, debt: _Debt[ReplicaT]) -> None:
        """A call that was given up half-way says nothing about its replica."""
        with self._lock:
            if debt.is_probe:
                debt.member.is_probed = False
            if debt.is_answered:
                debt.member.failures_in_a_row = 0

    def _judged(
        self, debt: _Debt[ReplicaT], error: EngineUnavailable, abort: Abort
    ) -> EngineUnavailable:
        """Return the error as it concerns the turn. A failure of the replica is counted."""
        member, reason = debt.member, error.message
        with self._lock:
            is_busy = member.is_busy(error, debt.began_at)
        is_the_turns = can_be_the_turns(error) and self._answers(member, abort)
        if is_busy:
            event, error = "replica.busy", EngineBusy(reason)
        elif is_the_turns:
            event, debt.is_answered = "replica.refused_turn", True
        else:
            event = "replica.unjudged" if is_the_turns is None else "replica.failed"
            if is_the_turns is not None:
                with self._lock:
                    member.failed(error, self._clock())
            if isinstance(error, EngineRefused | EngineBusy):
                error = EngineAway(reason, retry_after_s=error.retry_after_s)
        log.warning(event, replica=member.replica.name, reason=reason)
        return error

    def _answers(self, member: Member[ReplicaT], abort: Abort) -> bool | None:
        """Whether the replica answers others; None if `abort` was set before that was known."""
        asked_at = self._clock()
        answered = answers(member.replica, abort)
        if answered is not None or abort.is_set():
            return answered
        with self._lock:
            return member.delivered_at >= asked_at  # it is slow, and serves others

    def _watch(self, member: Member[ReplicaT]) -> None:
        while not self._closed.wait(self._check_every_s):
            self._check(member)

    def _check(self, member: Member[ReplicaT]) -> None:
        because, began_at = None, self._clock()
        try:
            member.replica.check()
        except EngineUnavailable as error:
            if member.is_busy(error, began_at):
                return
            because = error.message
        except Exception as error:
            because = f"its health check failed: {type(error).__name__}: {error}"
        with self._lock:
            before, member.unhealthy_because = member.unhealthy_because, because
        if (before is None) != (because is None):
            event = "replica.lost" if because else "replica.found"
            log.info(event, replica=member.replica.name, reason=because)

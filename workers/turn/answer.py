"""Answer: the way of one turn through a worker."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event
from typing import Protocol
from uuid import UUID

import structlog

from turnmill.schemas.capabilities import Need, needs_of
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.errors import (
    ContextOverflow,
    DatabaseUnavailable,
    EngineAway,
    EngineBrokeOff,
    EngineBusy,
    EngineDied,
    PermanentError,
    TransientError,
    TurnmillError,
)
from turnmill.schemas.outcomes import (
    ATTEMPTS_USED_UP,
    HANDED_BACK,
    Answered,
    Cancelled,
    Crashed,
    Failed,
    Outcome,
    Snoozed,
)
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import EmbedderSettings, SearchSettings
from turnmill.schemas.turns import Reply, Usage
from turnmill.workers.consumer.availability import Availability
from turnmill.workers.consumer.metrics import QUEUED_S, Pace, count_outcome, outcome_name
from turnmill.workers.context.citations import check_citations, pin_shown
from turnmill.workers.context.consult import consult, decline
from turnmill.workers.context.memory import recall
from turnmill.workers.engines.base import Chunk, Engine, Prompt
from turnmill.workers.media.media import Media
from turnmill.workers.safety.engine import made_safe
from turnmill.workers.safety.examiner import Blocked
from turnmill.workers.safety.sifting import refuse_blocked
from turnmill.workers.search.searches import Searches
from turnmill.workers.turn.abort import Abort, Interrupted, heeding
from turnmill.workers.turn.attempt import AbortReason, Attempt
from turnmill.workers.turn.backoff import backoff_s, postponed
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.clean import clean
from turnmill.workers.turn.leases import Leases
from turnmill.workers.turn.prompt import build_prompt
from turnmill.workers.turn.reply import NotMet, ReplyDraft, judged
from turnmill.workers.turn.settle import Settler
from turnmill.workers.turn.stream import Stream, TurnStream
from turnmill.workers.turn.summary import Summarizer

log = structlog.get_logger()

#: Longest wait of a turn that an engine did not take, seconds: the worker waits for the engine too.
AWAY_CAP_S = 5.0


#: Pause of a turn whose files are being fetched from a channel, seconds.
FETCH_S = 0.5


class Watcher(Protocol):
    """Who hears of attempts while they run."""

    def began(self, claim: Claim) -> None:
        """An attempt has its lease."""

    def ended(self, claim: Claim, outcome: str, error: str | None, duration_s: float) -> None:
        """An attempt is settled, or was fenced; `error`: the code of its error."""


class Nobody(Watcher):
    """Is told, and does nothing."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What answering needs; one per process, shared by its threads."""

    database: Database
    engine: Engine
    leases: Leases
    stream: Stream
    settler: Settler
    availability: Availability
    #: Set when the process will not wait any longer.
    give_up: Event
    media: Media
    #: Of the context window: what a summary of dropped turns may take; 0: none is made.
    summary_share: float = 0.0
    #: Of the context window: what a turn's documents may take.
    documents_share: float = 0.5
    watcher: Watcher = field(default_factory=Nobody)
    embedders: Embedders = field(default_factory=lambda: Embedders(EmbedderSettings()))
    searches: Searches = field(default_factory=lambda: Searches(SearchSettings()))


def answer_turn(worker: Worker, turn_id: UUID) -> bool:
    """Claim, generate, settle; False if there was nothing to claim.

    Raises:
        DatabaseUnavailable: the claim could not be made.
    """
    claim = worker.leases.claim(turn_id)
    if claim is None:
        return False
    QUEUED_S.labels(claim.lane).observe(claim.queued_s)
    with worker.leases.hold(claim) as attempt:
        worker.watcher.began(claim)
        outcome = _attempt_reply(worker, attempt)
        attempt.has_outcome = True
        is_settled = worker.settler.settle(claim, outcome)
    _report(worker, attempt, outcome, is_settled)
    return True


def _attempt_reply(worker: Worker, attempt: Attempt) -> Outcome:
    """The outcome of one attempt: whatever happens inside, it is a value."""
    stream = worker.stream.open(attempt.claim)
    try:
        outcome = _outcome(worker, attempt, stream)
        if isinstance(outcome, Snoozed | Crashed):
            _keep_text(worker, attempt.claim, stream)
        return outcome
    finally:
        worker.stream.discard(stream)


def _outcome(worker: Worker, attempt: Attempt, stream: TurnStream) -> Outcome:
    try:
        with heeding(attempt.abort):
            return _unless_blocked(worker, attempt, stream)
    except Interrupted:
        return _aborted(worker, attempt)
    except PermanentError as error:
        _explain(attempt.claim, error)
        return Failed(error.code, error.public_message)
    except TransientError as error:
        _explain(attempt.claim, error)
        return _after(worker, attempt, error)
    except BaseException as error:
        # MemoryError and SystemExit too: escaping into Celery's thread pool they would cost
        # a slot for good.
        log.exception("attempt.crashed", turn_id=attempt.claim.turn_id.hex)
        reason = f"{type(error).__name__} in the worker"
        return _snooze(attempt.claim, reason, TurnmillError.code)


def _unless_blocked(worker: Worker, attempt: Attempt, stream: TurnStream) -> Outcome:
    """Generate; what the bot's policy blocks, its own text takes the place of."""
    try:
        return _generate(worker, attempt, stream)
    except Blocked:
        if not worker.stream.restart(stream):
            return Cancelled()
        said = attempt.claim.safety.blocked
        return Answered(Reply(content=said, finish_reason="content_filter", usage=Usage()))


def _after(worker: Worker, attempt: Attempt, error: TransientError) -> Outcome:
    """Say whose failure it is: the turn's, or the engine's as a whole.

    An engine that broke off may have done so because of the turn: without progress that is a crash,
    and quarantine decides. A turn that progresses ends some day.
    """
    claim = attempt.claim
    if isinstance(error, EngineDied):
        worker.leases.on_hang()
        return Crashed()
    if isinstance(error, EngineBrokeOff) and not (
        attempt.has_progressed and _continues(worker.engine, claim)
    ):
        return Crashed()
    if isinstance(error, EngineBusy):
        worker.availability.report_busy(error)
        return postponed(worker.database, claim, error.retry_after_s or 0.0)
    if isinstance(error, EngineAway):
        worker.availability.report(error)
    if isinstance(error, EngineAway | EngineBrokeOff):
        delay_s = backoff_s(claim.attempt, cap_s=AWAY_CAP_S)
        return Snoozed(delay_s, error.public_message, counts=False, code=error.code)
    return _snooze(claim, error.public_message, error.code)


def _keep_text(worker: Worker, claim: Claim, stream: TurnStream) -> None:
    """Write what is generated but not written yet, for the next attempt to continue."""
    try:
        if _continues(worker.engine, claim):
            worker.stream.flush([stream])
    except (DatabaseUnavailable, EngineAway) as error:
        log.warning("attempt.text_lost", turn_id=stream.claim.turn_id.hex, error=error.code)


def _generate(worker: Worker, attempt: Attempt, stream: TurnStream) -> Outcome:
    claim = attempt.claim
    if claim.deadline_s is not None and claim.deadline_s <= 0:
        return _deadline()
    if claim.unreadable is not None:
        return _snooze(claim, claim.unreadable)
    if need := _lacks(worker, claim):
        # Accept saw a worker that can, and the hint may have come to any.
        delay_s = backoff_s(claim.attempt, cap_s=AWAY_CAP_S)
        return Snoozed(delay_s, f"beyond this worker's engine: {need.title}", counts=False)
    if claim.kept_text and not _continues(worker.engine, claim):
        if not worker.stream.restart(stream):
            return Cancelled()
        claim = replace(claim, kept_text="", kept_tokens=0)
    if worker.media.awaits(claim):
        return Snoozed(FETCH_S, "its files are being fetched", counts=False)
    claim = worker.media.read(claim, worker.engine.capabilities.accepts, attempt.abort)
    if claim.unclear:
        return worker.media.ask_to_repeat(claim)
    refuse_blocked(claim)  # before a server finds passages for it
    if attempt.abort.is_set():
        return _aborted(worker, attempt)
    consulted = consult(worker.database, claim, worker.embedders, worker.searches)
    if attempt.abort.is_set():  # the servers that it asks have seconds
        return _aborted(worker, attempt)
    if (declined := decline(worker.database, claim, consulted)) is not None:
        return declined
    # Most turns have none of the three, and a copy of a claim takes longer than to look.
    if consulted.sources:
        claim = replace(claim, sources=consulted.sources)
    engine, claim = made_safe(worker.engine, claim)
    if engine is not worker.engine:
        worker = replace(worker, engine=engine)
    if remembered := recall(worker.database, worker.engine, claim):
        claim = replace(claim, remembered=remembered)
    share = worker.summary_share
    summarizer = Summarizer(worker.database, attempt, share) if share else None
    prompt = build_prompt(
        worker.database,
        worker.engine,
        claim,
        summarizer,
        documents_share=worker.documents_share,
        show=partial(worker.media.show, claim.tenant_id),
    )
    claim = pin_shown(worker.database, claim, prompt.document_count)
    outcome = _reply(worker, attempt, stream, claim, prompt)
    if not isinstance(outcome, NotMet):
        return outcome
    # Once more, with what was wrong; readers are told that the reply begins again.
    if not worker.stream.restart(stream):
        return Cancelled()
    claim = replace(claim, kept_text="", kept_tokens=0)
    try:
        again = _reply(worker, attempt, stream, claim, outcome.corrected(prompt))
    except ContextOverflow:  # by the reply that was not met, and not by what the client sent
        return outcome.failed()
    if isinstance(again, Answered):
        return Answered(outcome.charged(again.reply))
    return again.failed() if isinstance(again, NotMet) else again


def _lacks(worker: Worker, claim: Claim) -> Need | None:
    """What the turn needs and this worker cannot do; most turns need nothing."""
    needs = needs_of(claim.messages, claim.params)
    return worker.media.extend(worker.engine.capabilities).lacks(needs) if needs else None


def _reply(
    worker: Worker, attempt: Attempt, stream: TurnStream, claim: Claim, prompt: Prompt
) -> Outcome | NotMet:
    """Let the engine write the reply, or the rest of it, and judge the whole."""
    tools = {tool.name for tool in claim.params.tools}
    draft = ReplyDraft(claim.kept_text, claim.kept_tokens, tools)
    pace = Pace(claim, attempt.began_at)
    extends = not _continues(worker.engine, claim)
    for chunk in check_citations(_chunks(worker.engine, prompt, claim, attempt.abort), claim):
        attempt.progress(chunk.text, extends=extends)
        worker.leases.spoke_at = time.monotonic()
        worker.availability.took(attempt.began_at)
        pace.note(chunk, worker.leases.spoke_at)
        draft.add(chunk)
        if chunk.finish_reason is not None:
            # Never kept, but shown by settling: after it another attempt would talk on.
            prompt_tokens = _prompt_tokens(worker.engine, prompt, chunk, claim.kept_tokens)
            reply = draft.reply(chunk, chunk.finish_reason, prompt_tokens)
            return judged(reply, claim.params) or Answered(reply)
        worker.stream.add(stream, chunk.text, chunk.token_count)
        if attempt.abort.is_set():
            break
    return _aborted(worker, attempt)


def _continues(engine: Engine, claim: Claim) -> bool:
    """Whether the engine resumes this turn's reply after the text of an earlier attempt."""
    can = engine.capabilities
    # Log-probabilities of an earlier attempt are not kept, nor do engines know which of the
    # prompt's tokens penalties are for.
    if claim.params.logprobs is not None or claim.params.penalizes_replies:
        return False
    return can.continues and (claim.params.response_format is None or can.continues_formats)


def _chunks(engine: Engine, prompt: Prompt, claim: Claim, abort: Abort) -> Iterator[Chunk]:
    """What the engine adds to the kept text; only an end, if there is no room for more."""
    if not claim.is_complete:
        try:
            yield from clean(engine.generate(prompt, claim.params_left, abort))
            return
        except ContextOverflow:
            if not prompt.prefix:
                raise
    yield Chunk("", finish_reason="length")


def _prompt_tokens(engine: Engine, prompt: Prompt, last: Chunk, kept_tokens: int) -> int:
    """Of the prompt that the client sent, which ends where the kept text begins."""
    if not prompt.prefix:
        return last.prompt_tokens
    try:
        return engine.count_tokens(replace(prompt, prefix=""))
    except Interrupted:  # the reply is whole: about right is good enough
        return max(0, last.prompt_tokens - kept_tokens)


def _aborted(worker: Worker, attempt: Attempt) -> Outcome:
    match attempt.reason:
        case AbortReason.LOST:
            return Cancelled()
        case AbortReason.DEADLINE:
            return _deadline()
        case AbortReason.DRAIN:
            return HANDED_BACK
        case AbortReason.TIMEOUT:
            return _continued_later(worker, attempt)
        case None:
            return _snooze(attempt.claim, "the engine stopped without finishing the reply")


def _continued_later(worker: Worker, attempt: Attempt) -> Snoozed:
    """The attempt counts only if the engine said nothing to any turn meanwhile."""
    if worker.leases.spoke_at >= attempt.began_at:
        return Snoozed(0.0, "longer than one attempt may take", counts=False)
    return _snooze(attempt.claim, "the engine said nothing for the time of an attempt")


def _deadline() -> Failed:
    return Failed("deadline_exceeded", "The reply was not finished in the time allowed.")


def _snooze(claim: Claim, reason: str, code: str | None = None) -> Snoozed:
    return Snoozed(backoff_s(claim.failures + 1), reason, code=code)


def _explain(claim: Claim, error: TurnmillError) -> None:
    """Log what a tenant may not read of an error."""
    if not error.is_public:
        log.warning(
            "attempt.failed",
            turn_id=claim.turn_id.hex,
            attempt=claim.attempt,
            error=error.code,
            reason=error.message,
        )


def _report(worker: Worker, attempt: Attempt, outcome: Outcome, is_settled: bool) -> None:
    """Log what the tables and metrics do not show."""
    claim = attempt.claim
    error = _error(outcome, is_settled and worker.settler.is_last(claim, outcome))
    duration_s = time.monotonic() - attempt.began_at
    count_outcome(claim, outcome, is_settled, duration_s)
    worker.watcher.ended(
        claim, outcome_name(outcome) if is_settled else "fenced", error.get("error"), duration_s
    )
    if is_settled and isinstance(outcome, Answered | Failed):
        worker.leases.ended.note(claim.lane)
    log.log(
        logging.DEBUG if is_settled and isinstance(outcome, Answered) else logging.INFO,
        "turn.settled" if is_settled else "turn.fenced",
        turn_id=claim.turn_id.hex,
        attempt=claim.attempt,
        outcome=type(outcome).__name__.lower(),
        **error,
    )


def _error(outcome: Outcome, is_parked: bool) -> dict[str, str]:
    """Name the error by its code: what a turn was parked for stays visible beside that it was."""
    code = outcome.code if isinstance(outcome, Failed | Snoozed) else None
    if is_parked:
        return {"error": ATTEMPTS_USED_UP} | ({"cause": code} if code else {})
    return {"error": code} if code else {}

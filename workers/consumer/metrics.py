"""What a worker's process measures of itself. The names are listed in docs/operations.md."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from turnmill.schemas.observability.telemetry import counter, histogram
from turnmill.schemas.outcomes import Answered, Outcome, Snoozed
from turnmill.schemas.turns import Lane
from turnmill.workers.engines.base import Chunk

if TYPE_CHECKING:
    from turnmill.workers.turn.claim import Claim
    from turnmill.workers.turn.leases import Leases

ATTEMPTS = counter(
    "attempts",
    "Attempts ended, by outcome: answered, failed, snoozed (tried again later), handed_back, "
    "crashed, cancelled, or fenced (another worker had taken the turn over).",
    "lane",
    "outcome",
)
TOKENS = counter(
    "tokens",
    "Tokens of committed replies: of the prompt (input, of which cached), and of the reply.",
    "kind",
)
FORMATS = counter(
    "formats",
    "Replies with a format, by how they ended: met, cut (by their limit), or not_met (asked for "
    "once more).",
    "end",
)
VERDICTS = counter(
    "knowledge_verdicts",
    "Questions that a bot's collection was asked, by what became of them: answered, chat (it asks "
    "nothing), unanswered (the model replied on its own), searched (from pages of the web), "
    "clarify, uncertain, handed_off.",
    "verdict",
)
QUEUED_S = histogram("turn_queue_seconds", "From due to claimed, back-off not included.", "lane")
FIRST_CHUNK_S = histogram(
    "turn_first_chunk_seconds", "From the accept of a turn to its reply's first text.", "lane"
)
REPLY_S = histogram(
    "turn_reply_seconds", "From the accept of a turn to its committed reply.", "lane"
)
FIRST_TOKEN_S = histogram(
    "attempt_first_token_seconds", "From the claim to the engine's first text.", "lane"
)
OUTPUT_TOKEN_S = histogram(
    "attempt_output_token_seconds",
    "Mean time between the tokens of an attempt, the first one left out.",
    "lane",
)
ATTEMPT_S = histogram("attempt_seconds", "From claim to settle.", "lane")
LEASES_LOST = counter(
    "leases_lost", "Attempts that were stopped because their turn was cancelled or taken over."
)
TURNS_RESCUED = counter(
    "turns_rescued",
    "Turns of dead workers that this process's rescuer requeued or parked.",
    "action",
    known=("requeued", "parked"),
)
PRUNER_ROUNDS = counter(
    "pruner_rounds",
    "Rounds of this process's pruner.",
    "result",
    known=("done", "stalled", "failed"),
)
HINTS_DROPPED = counter("hints_dropped", "Messages that were no hint of Turnmill's.", "reason")


class Pace:
    """How fast one attempt's text comes."""

    def __init__(self, claim: "Claim", began_at: float) -> None:
        self._claim = claim
        self._began_at = began_at
        self._first_at: float | None = None
        self._later_tokens = 0

    def note(self, chunk: Chunk, now: float) -> None:
        """Note a chunk; `now` is of `time.monotonic`."""
        lane = self._claim.lane
        if self._first_at is not None:
            self._later_tokens += chunk.token_count
        elif chunk.text:
            self._first_at = now
            FIRST_TOKEN_S.labels(lane).observe(now - self._began_at)
            if not self._claim.kept_text:
                FIRST_CHUNK_S.labels(lane).observe(self._claim.age_s + now - self._began_at)
        if chunk.finish_reason is not None and self._first_at is not None and self._later_tokens:
            OUTPUT_TOKEN_S.labels(lane).observe((now - self._first_at) / self._later_tokens)


def count_outcome(claim: "Claim", outcome: Outcome, is_settled: bool, duration_s: float) -> None:
    """Count an attempt that has ended."""
    ATTEMPTS.labels(claim.lane, outcome_name(outcome) if is_settled else "fenced").inc()
    ATTEMPT_S.labels(claim.lane).observe(duration_s)
    if is_settled and isinstance(outcome, Answered):
        usage = outcome.reply.usage
        REPLY_S.labels(claim.lane).observe(claim.age_s + duration_s)
        TOKENS.labels("input").inc(usage.prompt_tokens)
        TOKENS.labels("cached").inc(usage.cached_tokens)
        TOKENS.labels("output").inc(usage.completion_tokens)


def outcome_name(outcome: Outcome) -> str:
    """Name an outcome as the attempts table does."""
    if isinstance(outcome, Snoozed) and not outcome.counts:
        return "handed_back"
    return type(outcome).__name__.lower()


class WorkerGauges(Collector):
    """What a worker is busy with, at this moment."""

    def __init__(self, leases: "Leases", lanes: tuple[Lane, ...], slots: int) -> None:
        self._leases = leases
        self._lanes = lanes
        self._slots = slots

    def collect(self) -> Iterator[Metric]:
        leases, held = self._leases, self._leases.held_by_lane()
        slots = GaugeMetricFamily(
            "turnmill_slots_count", "Turns of a lane that run at once, at most.", labels=["lane"]
        )
        busy = GaugeMetricFamily(
            "turnmill_slots_busy_count", "Turns of a lane that run.", labels=["lane"]
        )
        for lane in self._lanes:
            slots.add_metric([lane], self._slots)
        for lane in Lane:
            if lane in self._lanes or held[lane]:
                busy.add_metric([lane], held[lane])
        yield slots
        yield busy
        for name, text, value in (
            ("engine_up", "1 while the engine takes turns.", leases.unavailable_because is None),
            ("consumer_up", "1 while hints are consumed.", leases.takes_hints),
            ("worker_draining", "1 once the worker stops.", leases.draining.is_set()),
            ("worker_standing_by", "1 while the worker waits to take over.", leases.stands_by),
            (
                "worker_database_up",
                "1 while the heartbeat, which renews the leases, is connected.",
                leases.reconnected_s >= 0,
            ),
            ("engine_hung_count", "Turns that an engine does not let go of.", leases.hung_count),
        ):
            yield GaugeMetricFamily(f"turnmill_{name}", text, value=float(value))

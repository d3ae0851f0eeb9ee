"""The stream: keeps the chunks of running turns, so that readers see them and no attempt
has to repeat what a reader has seen.

Chunks are shown by keeping them: a reader only ever sees rows of the chunks table. One
thread writes for all turns of the process, each turn once per `flush_s`, and all that are due
in one transaction: after their first chunk they are due at the ticks of a common clock.
"""

import math
import threading
import time

import structlog

from turnmill.schemas.errors import DatabaseUnavailable, EngineFailure
from turnmill.schemas.outcomes import UNSTORABLE
from turnmill.schemas.postgres.database import DATA_ERRORS, Database
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.workers.turn.claim import Claim

log = structlog.get_logger()

#: The first text of a reply is shown this soon; shorter turns are settled without a chunk.
FIRST_FLUSH_S = 0.03

#: Turns that an engine answers together come one after the other, but are kept together.
GATHER_S = 0.01

#: Share-locking the turn orders this write before or after a takeover: what a fenced
#: attempt writes too late is dropped, and what it wrote in time its successor continues.
_KEEP = """
WITH owned AS (
    SELECT n.* FROM unnest(%(turns)s::uuid[], %(attempts)s::int[], %(positions)s::int[],
                           %(texts)s::text[], %(token_counts)s::int[], %(shown)s::bool[])
        AS n (turn_id, attempt, position, text, token_count, is_shown)
    JOIN turns t ON t.id = n.turn_id AND t.attempt = n.attempt
        AND t.worker_id = %(worker)s AND t.state = 'running'
    ORDER BY t.id FOR SHARE OF t
), kept AS (
    INSERT INTO chunks (turn_id, position, text, token_count)
    SELECT turn_id, position, text, token_count FROM owned
    ON CONFLICT DO NOTHING
)
SELECT pg_notify(%(channel)s, replace(turn_id::text, '-', '')) FROM owned WHERE is_shown
"""

#: The empty chunk behind a gap tells readers, and keeps the numbers from beginning again.
_RESTART = """
WITH owned AS (
    SELECT id FROM turns
    WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND state = 'running'
    FOR SHARE
), discarded AS (
    DELETE FROM chunks c USING owned WHERE c.turn_id = owned.id
), marker AS (
    INSERT INTO chunks (turn_id, position, text, token_count)
    SELECT id, %(position)s, '', 0 FROM owned
)
SELECT pg_notify(%(channel)s, replace(id::text, '-', '')) FROM owned
"""


class TurnStream:
    """The text of one attempt that is not kept yet."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.position = claim.next_position
        #: Text and number of tokens of each piece.
        self.pieces: list[tuple[str, int]] = []
        #: How many of them the chunk being written has. Should its commit be uncertain, the very
        #: same chunk is written again: one of that position may be kept already.
        self.written = 0
        self.due_at = time.monotonic() + FIRST_FLUSH_S
        #: Set once a piece of the text could not be stored: the turn is to fail.
        self.is_unstorable = False


class Stream:
    """The open streams of this process and the thread that keeps their chunks."""

    def __init__(self, database: Database, flush_s: float) -> None:
        self._database = database
        self._flush_s = flush_s
        self._open: set[TurnStream] = set()
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        #: When the thread looks again if nobody wakes it before.
        self._wakes_at = math.inf
        #: One flush at a time; the next one takes what came meanwhile.
        self._flushing = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._due:
            self._stopping.set()
            self._due.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def open(self, claim: Claim) -> TurnStream:
        stream = TurnStream(claim)
        with self._lock:
            self._open.add(stream)
        return stream

    def add(self, stream: TurnStream, text: str, token_count: int) -> None:
        """Queue a piece of the reply. Raises `EngineFailure` if an earlier one is unstorable."""
        if stream.is_unstorable:
            raise EngineFailure(UNSTORABLE.message)
        with self._due:
            if not stream.pieces:
                stream.due_at = max(stream.due_at, time.monotonic() + GATHER_S)
            stream.pieces.append((text, token_count))
            if stream.due_at < self._wakes_at:
                self._due.notify()

    def discard(self, stream: TurnStream) -> None:
        """Forget the stream; what is not kept yet will not be."""
        with self._lock:
            self._open.discard(stream)

    def restart(self, stream: TurnStream) -> bool:
        """Discard the text so far, kept or not, and tell the readers; False if it was fenced.

        Raises `DatabaseUnavailable`.
        """
        claim = stream.claim
        with self._flushing:
            stream.pieces.clear()
        rows = self._database.run(
            _RESTART,
            {
                "turn": claim.turn_id,
                "attempt": claim.attempt,
                "worker": claim.worker_id,
                "position": stream.position + 1,
                "channel": TURN_CHANNEL,
            },
        )
        stream.position += 2
        return bool(rows)

    def flush(self, streams: list[TurnStream] | None = None) -> None:
        """Keep the text of these streams, or of all that are due. Raises `DatabaseUnavailable`."""
        with self._flushing:
            now = time.monotonic()
            with self._lock:
                due = [
                    stream
                    for stream in (self._open if streams is None else streams)
                    if stream.pieces and (streams is not None or now + GATHER_S >= stream.due_at)
                ]
                for stream in due:
                    stream.written = stream.written or len(stream.pieces)
            if due:
                self._keep_each(due)
            with self._lock:
                for stream in due:
                    del stream.pieces[: stream.written]
                    stream.written = 0
                    stream.position += 1
                    stream.due_at = self._next_tick(now)

    def _next_tick(self, now: float) -> float:
        """The tick that is about `flush_s` away, half of it at least."""
        return math.ceil(now / self._flush_s + 0.5) * self._flush_s

    def _keep_each(self, streams: list[TurnStream]) -> None:
        """Keep the chunks in one transaction; bisect the streams if a value cannot be stored."""
        try:
            self._keep(streams)
        except DATA_ERRORS as error:
            if len(streams) == 1:
                turn_id = streams[0].claim.turn_id.hex
                log.error("chunk.unstorable", turn_id=turn_id, error=type(error).__name__)
                streams[0].is_unstorable = True
                return
            middle = len(streams) // 2
            self._keep_each(streams[:middle])
            self._keep_each(streams[middle:])

    def _keep(self, streams: list[TurnStream]) -> None:
        claims = [stream.claim for stream in streams]
        chunks = [stream.pieces[: stream.written] for stream in streams]
        self._database.run(
            _KEEP,
            {
                "turns": [claim.turn_id for claim in claims],
                "attempts": [claim.attempt for claim in claims],
                "positions": [stream.position for stream in streams],
                "texts": ["".join(text for text, _ in chunk) for chunk in chunks],
                "token_counts": [sum(count for _, count in chunk) for chunk in chunks],
                "shown": [claim.is_watched for claim in claims],
                "worker": claims[0].worker_id,
                "channel": TURN_CHANNEL,
            },
        )

    def _wait_until_due(self) -> bool:
        """Until there is text to keep; False: the stream is closed."""
        with self._due:
            while not self._stopping.is_set():
                due = (stream.due_at for stream in self._open if stream.pieces)
                self._wakes_at = min(due, default=math.inf)
                left_s = self._wakes_at - time.monotonic()
                if left_s <= 0:
                    return True
                self._due.wait(None if math.isinf(left_s) else left_s)
            return False

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self.flush()
            except DatabaseUnavailable as error:
                # Nothing is shown until it is kept; the next round tries again.
                log.warning("stream.stalled", error=error.message)
                self._stopping.wait(self._flush_s)
            except Exception:
                # Replies are settled all the same; the thread must outlive whatever this was.
                log.exception("stream.failed")
                self._stopping.wait(self._flush_s)

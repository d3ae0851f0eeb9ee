"""The stream: keeps the chunks of running turns, so that readers see them and no attempt
has to repeat what a reader has seen.

Chunks are shown by keeping them: a reader only ever sees rows of the chunks table. One
thread writes for all turns of the process, each turn at most once per `flush_s`.
"""

import threading
import time

import structlog

from turnmill.schemas.database import Database
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.routes import TURN_CHANNEL
from turnmill.schemas.turns import Lane
from turnmill.workers.lease import Claim

log = structlog.get_logger()

#: The first text of a reply is shown this soon; shorter turns are settled without a chunk.
FIRST_FLUSH_S = 0.03

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


class TurnStream:
    """The text of one attempt that is not kept yet."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.position = claim.next_position
        self.texts: list[str] = []
        self.token_count = 0
        self.due_at = time.monotonic() + FIRST_FLUSH_S


class Stream:
    """The open streams of this process and the thread that keeps their chunks."""

    def __init__(self, database: Database, flush_s: float) -> None:
        self._database = database
        self._flush_s = flush_s
        self._open: set[TurnStream] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def open(self, claim: Claim) -> TurnStream:
        stream = TurnStream(claim)
        with self._lock:
            self._open.add(stream)
        return stream

    def add(self, stream: TurnStream, text: str, token_count: int) -> None:
        with self._lock:
            stream.texts.append(text)
            stream.token_count += token_count

    def discard(self, stream: TurnStream) -> None:
        """Forget the stream; what is not kept yet will not be."""
        with self._lock:
            self._open.discard(stream)

    def flush(self, streams: list[TurnStream] | None = None) -> None:
        """Keep the text of these streams, or of all that are due. Raises `DatabaseUnavailable`."""
        now = time.monotonic()
        with self._lock:
            due = [
                stream
                for stream in (self._open if streams is None else streams)
                if stream.texts and (streams is not None or now >= stream.due_at)
            ]
            pending = [(s, s.position, "".join(s.texts), s.token_count) for s in due]
            lengths = [len(s.texts) for s in due]
        if not pending:
            return
        self._keep(pending)
        with self._lock:
            for (stream, position, _, token_count), length in zip(pending, lengths, strict=True):
                del stream.texts[:length]
                stream.token_count -= token_count
                stream.position = position + 1
                stream.due_at = now + self._flush_s

    def _keep(self, pending: list[tuple[TurnStream, int, str, int]]) -> None:
        claims = [stream.claim for stream, _, _, _ in pending]
        self._database.run(
            _KEEP,
            {
                "turns": [claim.turn_id for claim in claims],
                "attempts": [claim.attempt for claim in claims],
                "positions": [position for _, position, _, _ in pending],
                "texts": [text for _, _, text, _ in pending],
                "token_counts": [token_count for _, _, _, token_count in pending],
                "shown": [claim.lane is Lane.INTERACTIVE for claim in claims],
                "worker": claims[0].worker_id,
                "channel": TURN_CHANNEL,
            },
        )

    def _run(self) -> None:
        while not self._stopping.wait(FIRST_FLUSH_S):
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

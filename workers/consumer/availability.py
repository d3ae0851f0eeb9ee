"""Availability: while the engine takes no turns, its worker claims none.

An engine that is away, loading or overloaded says nothing about a turn. The worker therefore stops
claiming and reports so in `worker_liveness`: a standby takes over, and the doctor tells why. Its
consumer cancels its queues and hands its hints back (`HintConsumer`), so that other workers get
them. It resumes when the engine's own check succeeds.

An engine that has no room for a turn may have some for others. The worker stops claiming only if
nothing that began since the engine was busy last was answered.
"""

import math
import threading
import time

import structlog

from turnmill.schemas.content import storable
from turnmill.schemas.errors import EngineDied, EngineUnavailable
from turnmill.workers.engines.base import Engine
from turnmill.workers.turn.leases import Leases

log = structlog.get_logger()

#: How often the engine is checked, seconds.
CHECK_S = 1.0

#: A draining worker notices so soon that it need not wait for the engine, seconds.
POLL_S = 0.1


class Availability:
    """Checks the engine in the background and holds turns back while it is away."""

    def __init__(self, engine: Engine, leases: Leases) -> None:
        self._engine = engine
        self._leases = leases
        self._is_back = threading.Event()
        self._is_back.set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        #: When the engine had no room for a turn last, and the latest beginning of an attempt that
        #: it answers (monotonic clock).
        self._busy_at = self._took_at = -math.inf
        self._thread = threading.Thread(target=self._run, name="availability", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def wait(self) -> bool:
        """Wait until the engine takes turns; False if the hint is to be handed back before."""
        leaving = (self._leases.draining, self._leases.hands_back, self._stopping)
        while not self._is_back.wait(POLL_S):
            if any(event.is_set() for event in leaving):
                return False
        return True

    def report(self, error: EngineUnavailable) -> None:
        """Stop claiming: the engine took no turn."""
        with self._lock:
            if self._is_back.is_set():
                log.warning("engine.away", reason=error.message)
            self._is_back.clear()
            # A server's words may be in it, and the row is written with every heartbeat.
            self._leases.unavailable_because = storable(error.message)

    def took(self, began_at: float) -> None:
        """Note that the engine answers an attempt that began then (monotonic clock)."""
        if began_at > self._took_at:
            self._took_at = began_at

    def report_busy(self, error: EngineUnavailable) -> None:
        """Stop claiming if the engine has no room for one turn after the other."""
        busy_before, self._busy_at = self._busy_at, time.monotonic()
        if busy_before > self._took_at:
            self.report(error)

    def _resume(self) -> None:
        with self._lock:
            if not self._is_back.is_set():
                log.info("engine.back")
            self._leases.unavailable_because = None
            self._is_back.set()

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_S):
            try:
                self._engine.check()
            except EngineDied:
                self._leases.on_hang()
            except EngineUnavailable as error:
                self.report(error)
            except Exception:
                # The turns tell; without this thread nothing would resume.
                log.exception("engine.check_failed")
                self._resume()
            else:
                self._resume()

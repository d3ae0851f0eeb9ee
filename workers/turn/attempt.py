"""An attempt: one try of this process at one turn, and what may stop it."""

import time
from enum import StrEnum

from turnmill.workers.turn.abort import Abort
from turnmill.workers.turn.claim import Claim


class AbortReason(StrEnum):
    LOST = "lost"  # cancelled, or taken over by another attempt: nothing left to write
    DEADLINE = "deadline"
    DRAIN = "drain"
    #: Longer than one attempt may take: the next one continues.
    TIMEOUT = "timeout"


class Attempt:
    """One try at one turn, from claim to settle."""

    def __init__(self, claim: Claim, timeout_s: float) -> None:
        self.claim = claim
        #: Set when the engine must stop; `reason` says why.
        self.abort = Abort()
        self.reason: AbortReason | None = None
        #: The engine has let go of the turn; what is left is to settle it.
        self.has_outcome = False
        self._stopped_at = float("inf")
        limit_s = timeout_s if claim.deadline_s is None else min(timeout_s, claim.deadline_s)
        self._timeout_s = timeout_s
        self.began_at = time.monotonic()
        client_s = float("inf") if claim.deadline_s is None else claim.deadline_s
        self._deadline_at = self.began_at + client_s
        self.ends_at = self.began_at + limit_s
        #: The engine has added text to the reply.
        self.has_progressed = False

    def stop(self, reason: AbortReason) -> None:
        """Stop generating; the first reason stands."""
        if self.reason is None:
            self.reason = reason
            self._stopped_at = time.monotonic()
        self.abort.set()

    def progress(self, text: str, *, extends: bool) -> None:
        """Note what the engine has added to the reply. `extends`: the time for it begins anew."""
        self.has_progressed = self.has_progressed or bool(text)
        if extends:
            self.ends_at = min(time.monotonic() + self._timeout_s, self._deadline_at)

    def time_out(self, now: float) -> None:
        """Stop if the time is up (`time.monotonic`): the client's, or that of one attempt."""
        if now >= self.ends_at:
            is_clients = now >= self._deadline_at
            self.stop(AbortReason.DEADLINE if is_clients else AbortReason.TIMEOUT)

    def ignores_abort(self, since: float) -> bool:
        """Whether the engine still generates, though it was aborted before `since` (monotonic)."""
        return not self.has_outcome and self._stopped_at < since

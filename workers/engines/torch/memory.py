"""How many turns may run at once on a device whose memory is shared, or smaller than was hoped."""

import structlog

import torch

log = structlog.get_logger(__name__)

#: Steps without want of memory before one more turn may run at once, as many again for each time
#: that memory ran out: who shares the device may have left, or may be there to stay.
QUIET_STEPS = 256


class Places:
    """The turns that may run at once: fewer after memory ran out, then one more at a time."""

    def __init__(self, most: int) -> None:
        #: What the settings allow, and how many may run now.
        self._most = self.count = most
        #: Times that memory has run out.
        self._shortages = 0
        self._quiet_steps = 0

    def note_shortage(self, error: Exception) -> None:
        """Memory ran out: report it, and let `count` grow more slowly."""
        self._shortages += 1
        self._quiet_steps = 0
        log.warning(
            "engine.out_of_memory",
            times=self._shortages,
            turns_at_once=self.count,
            error=str(error),
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def grow_back(self) -> None:
        """Note a step that had memory: one more turn at once after some of them."""
        self._quiet_steps += 1
        if self.count < self._most and self._quiet_steps >= QUIET_STEPS * self._shortages:
            self.count += 1
            self._quiet_steps = 0
            log.info("engine.grown_back", turns_at_once=self.count)


def is_out_of_memory(error: BaseException) -> bool:
    """On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )

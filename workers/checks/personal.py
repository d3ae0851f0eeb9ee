"""Personal data of a known form."""

from collections.abc import Sequence

from turnmill.schemas.safety.findings import Finding
from turnmill.schemas.safety.personal import find_personal
from turnmill.schemas.safety.policy import Safety
from turnmill.workers.checks.base import Check


class PersonalCheck(Check):
    """Finds what `schemas/safety/personal.py` finds."""

    def __init__(self, safety: Safety) -> None:
        self._regions = safety.regions

    def examine(self, text: str) -> Sequence[Finding]:
        return find_personal(text, self._regions)

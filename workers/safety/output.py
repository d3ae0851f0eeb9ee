"""Checks of a reply before it leaves, sentence by sentence."""

import re

from turnmill.schemas.safety.policy import Action, Stage
from turnmill.workers.checks.base import Check
from turnmill.workers.safety.examiner import Blocked, Examiner

#: Characters that a sentence without an end waits for, and of these those that stay.
LONGEST_SENTENCE, STAYING = 600, 120

_ENDS = re.compile(r"[.!?](?=\s)|[。！？；\n]")


class CheckFilter:
    """Masks what the policy wants masked in replies.

    Raises `Blocked` for what it wants blocked.
    """

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner

    def open_at(self, text: str) -> int:
        ends = [found.end() for found in _ENDS.finditer(text)]
        end = ends[-1] if ends else 0
        if len(text) - end > LONGEST_SENTENCE:
            end = max(end, text.rfind(" ", end, len(text) - STAYING))
        checks = self._examiner.checks(Stage.OUTPUT)
        return min(
            self._before(check.open_at(text, end), text, check, action) for check, action in checks
        )

    def _before(self, end: int, text: str, check: Check, action: Action) -> int:
        """Where a text can be cut: what the check finds stays whole."""
        found = self._examiner.find(check, text, action) if end > 0 else ()
        return next((each.start for each in found if each.start < end < each.end), end)

    def rewrite(self, text: str, before: str = "") -> str:
        if not text:
            return text
        verdict = self._examiner.examine(text, Stage.OUTPUT)
        if verdict.action is Action.BLOCK:
            raise Blocked(f"The reply holds: {', '.join(verdict.categories)}.")
        return verdict.text

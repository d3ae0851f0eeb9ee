"""What a bot's checks find in a text, and what its policy makes of it."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import structlog

from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.observability.telemetry import counter
from turnmill.schemas.safety.findings import Finding, apart, masked
from turnmill.schemas.safety.policy import Action, Safety, Stage
from turnmill.workers.checks.base import Check
from turnmill.workers.checks.registry import create_check

log = structlog.get_logger()

FINDINGS = counter(
    "check_findings",
    "What checks found in texts, by where the text came from (input, passage, output), category "
    "and what became of it (flag, mask, block).",
    "stage",
    "category",
    "action",
)

#: The category of a text that a check fails at.
UNCHECKED = "unchecked"

_SEVERITY = list(Action)


class Blocked(TurnmillError):
    """A text holds what the bot's policy blocks: its own text takes the reply's place."""

    code = "content_filter"


class Verdict(NamedTuple):
    """What becomes of a text."""

    action: Action
    #: Of what was found, each once.
    categories: tuple[str, ...]
    #: The text with what is masked, or blocked, replaced.
    text: str


class Examiner:
    """Examines the texts of one turn."""

    def __init__(self, safety: Safety, turn_id: UUID) -> None:
        self._safety = safety
        self._turn_id = turn_id

    def checks(self, stage: Stage) -> list[tuple[Check, Action]]:
        """What is looked for in texts of this stage."""
        actions = self._safety.actions(stage)
        return [(create_check(name, self._safety), action) for name, action in actions.items()]

    def examine(self, text: str, stage: Stage, *, is_counted: bool = True) -> Verdict:
        """Judge a text; the same each time. Only categories are logged and counted."""
        found: list[tuple[Finding, Action]] = []
        for check, action in self.checks(stage):
            found += [(each, action) for each in self.find(check, text, action)]
        worst = max((action for _, action in found), key=_SEVERITY.index, default=Action.ALLOW)
        hidden = [each for each, action in found if action in (Action.MASK, Action.BLOCK)]
        if found and is_counted:
            self._report(found, stage)
        categories = tuple(dict.fromkeys(each.category for each, _ in found))
        return Verdict(worst, categories, masked(text, apart(hidden)))

    def find(self, check: Check, text: str, action: Action) -> Sequence[Finding]:
        """What a check finds; all of the text, where it fails and the policy wants it closed."""
        try:
            return check.examine(text)
        except Exception as error:
            reason = error.message if isinstance(error, TurnmillError) else None
            kind = type(error).__name__
            log.error(
                "check.failed", check=type(check).__name__, error=kind, reason=reason,
                fail=self._safety.fail,
            )  # fmt: skip
            if self._safety.fail == "open" or action is Action.FLAG:
                return []
            return [Finding(0, len(text), UNCHECKED)]

    def _report(self, found: list[tuple[Finding, Action]], stage: Stage) -> None:
        kinds = dict.fromkeys((each.category, action) for each, action in found)
        for category, action in kinds:
            FINDINGS.labels(stage.value, category, action.value).inc()
        log.info(
            "check.found",
            turn_id=self._turn_id.hex,
            stage=stage.value,
            found={category: action.value for category, action in kinds},
        )

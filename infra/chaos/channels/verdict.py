"""The verdict on a storm through channels: on its messages, and on its turns."""

from collections.abc import Sequence

from turnmill.infra.chaos.channels.checker import check_messages
from turnmill.infra.chaos.channels.events import ASIDE, is_collecting
from turnmill.infra.chaos.channels.handing import is_handed
from turnmill.infra.chaos.checker import Verdict, check
from turnmill.infra.chaos.observed import Observed, TurnRow
from turnmill.infra.chaos.record import Entry, Intent, Promise


def check_channels(record: Sequence[Entry], observed: Observed, model: str) -> Verdict:
    """Judge every message, and the turns where each message is one that the bot answers."""
    special = {
        entry.key
        for entry in record
        if isinstance(entry, Intent)
        and (is_collecting(entry.conversation) or is_handed(entry.conversation))
    }
    entries = [e for e in record if not isinstance(e, Intent | Promise) or e.key not in special]
    turns: list[TurnRow] = [
        turn for turn in observed.turns if (turn.key or "").rstrip(ASIDE) not in special
    ]
    verdict = check(entries, Observed(turns, observed.attempts), model)
    verdict.messages.update(check_messages(record))
    return verdict

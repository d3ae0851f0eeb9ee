"""What a person sees of parked turns. Everything here turns values into renderables."""

from collections import Counter
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.parked.replay import Change
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.parked import ParkedDetails, ParkedPage
from turnmill.schemas.turns import TurnState

#: Turns named with the reason why they were left; of more only the number is told.
SHOWN_REFUSALS = 20


def count(number: int) -> str:
    return f"{number:,} parked turn{'' if number == 1 else 's'}"


def page(parked: ParkedPage, now: datetime) -> RenderableType:
    """The totals by error, then the turns."""
    if not parked.total:
        return "No parked turns."
    table = Listing("turn", "age", "error", "attempts", "lane", "bot")
    for turn in parked.turns:
        attempts = f"{turn.attempts}, {turn.crashes} crashed" if turn.crashes else turn.attempts
        age = _age(now, turn.parked_at)
        table.add_row(turn.turn_id, age, turn.error_code, str(attempts), turn.lane, plain(turn.bot))
    parts: list[RenderableType] = [_totals(parked), "", table]
    if parked.next:
        parts.append(f"More: the same with --after {parked.next}")
    return Group(*parts)


def details(turn: ParkedDetails, now: datetime) -> RenderableType:
    """A turn, its messages and its attempts."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _rows(turn, now).items():
        table.add_row(f"[dim]{name}[/]", plain(value))
    for message in turn.messages:
        table.add_row(f"[dim]{message.role}[/]", plain(message.text))
    return Group(table, "", _history(turn))


def outcome(changes: list[Change], verb: str) -> RenderableType:
    """How many turns were changed, in which state they are now, and why the others were not."""
    done = [change for change in changes if change.refusal is None]
    refused = [change for change in changes if change.refusal is not None]
    states = Counter(change.state for change in done if change.state is not TurnState.PARKED)
    now = f": now {_listed({str(state): n for state, n in states.items()})}" if states else ""
    parts: list[RenderableType] = [f"{len(done):,} of {count(len(changes))} {verb}{now}."]
    for change in refused[:SHOWN_REFUSALS]:
        reason = change.refusal.message if change.refusal else ""
        parts.append(plain(f"{show_id(Prefix.TURN, change.turn_id)}: {reason}"))
    if len(refused) > SHOWN_REFUSALS:
        codes = Counter(change.refusal.code for change in refused if change.refusal)
        parts.append(f"Left as they were: {_listed(codes)}.")
    return Group(*parts)


def _totals(parked: ParkedPage) -> Text:
    codes: Counter[str] = Counter()
    for error in parked.errors:
        codes[error.error_code] += error.count
    if others := parked.total - codes.total():
        codes["others"] = others
    lines = [f"{parked.total:,} parked: {_listed(codes)}"]
    lines += [f"{error.count:>8,}  {error.error_message}" for error in parked.errors]
    return plain("\n".join(lines))


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items())


def _rows(turn: ParkedDetails, now: datetime) -> dict[str, str]:
    place = f"turn {turn.seq} of {turn.conversation_turns}"
    return {
        "turn": turn.turn_id,
        "conversation": f"{turn.conversation_id}, {place}",
        "bot": f"{turn.bot} (model {turn.model})",
        "lane": turn.lane,
        "accepted": _time(now, turn.accepted_at),
        "parked": _time(now, turn.parked_at),
        "attempts": f"{turn.attempts}, {turn.crashes} of them ended their worker",
        "error": f"{turn.error_code}: {turn.error_message}",
        "replay": turn.replay,
    }


def _history(turn: ParkedDetails) -> Table:
    table = Listing("attempt", "lane", "worker", "started", "took", "outcome", "error")
    for attempt in turn.history:
        took = _age(attempt.ended_at, attempt.started_at) if attempt.ended_at else ""
        table.add_row(
            str(attempt.number),
            attempt.lane,
            plain(attempt.worker),
            f"{attempt.started_at:%m-%d %H:%M:%S}",
            took,
            attempt.outcome or "",
            plain(attempt.error or ""),
        )
    return table


def _time(now: datetime, time: datetime) -> str:
    return f"{time.isoformat(timespec='seconds')}, {_age(now, time)} ago"


def _age(end: datetime, start: datetime) -> str:
    seconds = max(0.0, (end - start).total_seconds())
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f}{unit}"
    return f"{seconds:.0f}s"

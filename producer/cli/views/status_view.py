"""The status on a terminal: lanes, the oldest turns, workers."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.operations.status import (
    LaneStatus,
    PauseStatus,
    Status,
    WorkerStatus,
)
from turnmill.producer.operations.workers import WorkerState

_STYLES = {
    WorkerState.CONSUMING: "green",
    WorkerState.DRAINING: "yellow",
    WorkerState.AWAY: "red",
    WorkerState.IDLE: "yellow",
    WorkerState.SILENT: "red",
    WorkerState.ENDED: "dim",
    WorkerState.DEAD: "red",
}
#: Digits of a worker's id that tell it from others: UUIDv7, to the millisecond and a little more.
_ID_CHARS = len("worker_") + 16


def whole(status: Status) -> RenderableType:
    """All of it."""
    return Group(lanes(status), "", *_oldest(status), workers(status.workers, with_ended=False))


def lanes(status: Status) -> RenderableType:
    """The lanes of each model, and the pauses that hold."""
    names = ("model", "lane", "queued", "snoozed", "waiting", "running", "held", "rate", "left")
    table = Listing(*names)
    for column in table.columns[2:]:
        column.justify = "right"
    for lane in status.lanes:
        table.add_row(plain(lane.model), _lane_name(lane), *_figures(lane))
    found: RenderableType = table if status.lanes else "No lanes: no worker lives, nothing is open."
    return Group(found, *(_pause(pause) for pause in status.pauses))


def workers(rows: Sequence[WorkerStatus], *, with_ended: bool) -> RenderableType:
    """The workers; those that have ended too, or only those of them that died with turns."""
    shown = [row for row in rows if with_ended or _is_of_interest(row)]
    if not shown:
        return "No live workers. Start one: turnmill worker"
    table = Listing("worker", "where", "model", "lanes", "busy", "beat", "state")
    for row in shown:
        table.add_row(
            row.worker_id[:_ID_CHARS],
            plain(f"{row.host}, {row.pid}"),
            plain(row.model),
            ", ".join(row.lanes),
            f"{row.busy} of {row.concurrency * len(row.lanes)}",
            f"{span(row.beat_age_s)} ago",
            _state(row),
        )
    return table


def span(seconds: float) -> str:
    """A time as people say it: `4 s`, `12 min`, `3 h`."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _is_of_interest(row: WorkerStatus) -> bool:
    is_gone = row.state in (WorkerState.ENDED, WorkerState.DEAD)
    return not is_gone or row.busy > 0


def _lane_name(lane: LaneStatus) -> Text:
    return Text(f"{lane.lane} (paused)", style="yellow") if lane.pause else Text(lane.lane)


def _figures(lane: LaneStatus) -> list[str]:
    about = "~" if lane.is_estimate else ""
    counts = [
        f"{about if count else ''}{count:,}" for count in (lane.queued, lane.snoozed, lane.waiting)
    ]
    rate = "?" if lane.turns_per_s is None else f"{lane.turns_per_s:.1f}/s"
    left = "" if lane.left_s is None else f"about {span(lane.left_s)}"
    return [*counts, f"{lane.running} of {lane.slots}", f"{lane.held:,}", rate, left]


def _pause(pause: PauseStatus) -> Text:
    model = f"model {pause.model}" if pause.model else "all models"
    since = pause.paused_at.isoformat(timespec="seconds")
    reason = f": {pause.reason}" if pause.reason else ""
    return plain(
        f"Lane {pause.lane} of {model} is paused since {since} by {pause.paused_by}{reason}"
    )


def _oldest(status: Status) -> list[RenderableType]:
    """A line for each lane that has one, and a line for what helps."""
    lines: list[RenderableType] = []
    for lane in status.lanes:
        if lane.oldest is None or lane.oldest.why is None:
            continue
        oldest, why = lane.oldest, lane.oldest.why
        text = f"{oldest.turn_id}, the oldest of {lane.lane}, {span(oldest.age_s)} old, {why.text}"
        lines.append(plain(text))
        if why.remedy:
            lines.append(Text("→ ", style="bold").append_text(plain(why.remedy)))
    return [*lines, ""] if lines else []


def _state(row: WorkerStatus) -> Text:
    text = Text(row.state, style=_STYLES[row.state])
    if row.unavailable_because:
        text.append_text(plain(f": {row.unavailable_because}"))
    elif row.drain_asked_by and row.state is WorkerState.DRAINING:
        text.append_text(plain(f", asked by {row.drain_asked_by}"))
    return text

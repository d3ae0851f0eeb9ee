"""What a storm showed: figures from its tables, a table for people, a plot, a file for machines."""

import bisect
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from turnmill.infra.chaos.observed import AttemptRow
from turnmill.infra.chaos.record import Fault, Promise
from turnmill.infra.chaos.storm import Outcome

#: How long after a fault has ended a stall still counts as its own.
_AFTERMATH_S = 5.0


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one storm; times in seconds."""

    turns: int
    faults: dict[str, int]
    findings: dict[str, int]
    attempts: int
    #: Share of the generated tokens that are part of no reply.
    wasted: float
    #: From promise to settlement.
    latency: dict[str, float]
    #: How long an accepting call took.
    acceptance: dict[str, float]
    #: Accepting calls that were refused or broke, and were repeated.
    refused: int
    #: By fault: from the fault to the next attempt at each turn that it interrupted.
    restart: dict[str, dict[str, float]]
    #: By fault that hit no single worker: the longest time after it that nothing was begun.
    stall: dict[str, dict[str, float]]
    #: Share of the turns that a live worker held that this worker got, the faults and what comes
    #: right after them aside; none where none was held.
    hit_rate: float | None
    turns_per_s: float
    seed: int


def figures(outcome: Outcome) -> Figures:
    turns = outcome.observed.turns
    faults: defaultdict[str, int] = defaultdict(int)
    for fault in outcome.faults:
        faults[fault.name] += 1
    kept = sum(turn.token_count for turn in turns)
    promises = [entry for entry in outcome.record if isinstance(entry, Promise)]
    return Figures(
        turns=len(turns),
        faults=dict(faults),
        findings={name: len(found) for name, found in outcome.verdict.sets.items()},
        attempts=sum(len(rows) for rows in outcome.observed.attempts.values()),
        wasted=1 - kept / max(outcome.generated_tokens, 1),
        latency=_spread([latency for _, latency in latencies(outcome)]),
        acceptance=_spread([promise.took_s for promise in promises]),
        refused=sum(promise.tries - 1 for promise in promises),
        restart={name: _spread(times) for name, times in restarts(outcome).items()},
        stall={name: _spread(times) for name, times in stalls(outcome).items()},
        hit_rate=hit_rate(outcome),
        turns_per_s=len(turns) / outcome.took_s,
        seed=outcome.storm.load.seed,
    )


def latencies(outcome: Outcome) -> Iterator[tuple[float, float]]:
    """When each turn settled, and how long after it was accepted, in seconds."""
    for turn in outcome.observed.turns:
        if turn.settled_at is not None:
            yield turn.settled_at, turn.settled_at - turn.accepted_at


def restarts(outcome: Outcome) -> dict[str, list[float]]:
    """By fault, how long each attempt that it interrupted took to be tried again, in seconds."""
    by_worker: defaultdict[str, list[tuple[AttemptRow, AttemptRow]]] = defaultdict(list)
    for attempts in outcome.observed.attempts.values():
        for attempt, successor in itertools.pairwise(attempts):
            by_worker[attempt.worker_id].append((attempt, successor))
    times: defaultdict[str, list[float]] = defaultdict(list)
    for fault in outcome.faults:
        for worker_id in fault.workers:
            for attempt, successor in by_worker[worker_id]:
                if attempt.started_at < fault.at and _is_hit(attempt, fault):
                    times[fault.name].append(successor.started_at - fault.at)
    return dict(times)


def stalls(outcome: Outcome) -> dict[str, list[float]]:
    """By fault, the longest gap between attempts' starts that ends after it, in seconds.

    Other faults may lie in the same seconds: in a storm these are upper bounds.
    """
    starts = sorted(row.started_at for rows in outcome.observed.attempts.values() for row in rows)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for fault in outcome.faults:
        if fault.workers:
            continue
        first = bisect.bisect(starts, fault.at)
        last = bisect.bisect(starts, fault.until + _AFTERMATH_S)
        after = [fault.at, *starts[first : last + 1]]
        gaps = [later - earlier for earlier, later in itertools.pairwise(after)]
        times[fault.name].append(max(gaps, default=0.0))
    return dict(times)


def hit_rate(outcome: Outcome) -> float | None:
    """Of the turns begun between the faults: see `Figures.hit_rate`."""
    warm = [
        attempt.is_warm
        for attempts in outcome.observed.attempts.values()
        for attempt in attempts[:1]
        if attempt.is_warm is not None
        and not any(
            fault.at <= attempt.started_at <= fault.until + _AFTERMATH_S for fault in outcome.faults
        )
    ]
    return sum(warm) / len(warm) if warm else None


def is_kept(outcome: Outcome) -> bool:
    """Every promise was kept."""
    rate = hit_rate(outcome) or 0.0
    return outcome.verdict.is_clean and rate >= outcome.storm.least_hit_rate


def _is_hit(attempt: AttemptRow, fault: Fault) -> bool:
    """Handed back, or found dead, after the fault and not before it."""
    is_cut = attempt.outcome in ("crashed", "interrupted", "handed_back")
    return is_cut and attempt.ended_at is not None and attempt.ended_at > fault.at


def show(outcome: Outcome, console: Console) -> None:
    """Print the table of one storm, and the first findings if there are any."""
    result = figures(outcome)
    table = Table(title=f"{outcome.storm.name}, seed {result.seed}", show_header=False)
    table.add_row("turns", f"{result.turns} in {outcome.took_s:.0f} s, {result.attempts} attempts")
    table.add_row("faults", ", ".join(f"{n} {name}" for name, n in sorted(result.faults.items())))
    for name, found in outcome.verdict.sets.items():
        table.add_row(name, f"[red]{len(found)}[/]" if found else "0")
    table.add_row("wasted generation", f"{result.wasted:.2%}")
    if result.hit_rate is not None:
        table.add_row("affinity hit rate", f"{result.hit_rate:.2%} between faults")
    table.add_row("latency", _words(result.latency))
    table.add_row("acceptance", _words(result.acceptance))
    table.add_row("refused calls", str(result.refused))
    for name, times in sorted(result.restart.items()):
        table.add_row(f"restart after {name}", _words(times))
    for name, times in sorted(result.stall.items()):
        table.add_row(f"stall after {name}", _words(times))
    console.print(table)
    for name, found in outcome.verdict.sets.items():
        for finding in found[:10]:
            console.print(f"  [red]{name}[/]: {finding}", highlight=False, markup=True)


def write_json(outcomes: Sequence[Outcome], path: Path) -> None:
    content = {outcome.storm.name: asdict(figures(outcome)) for outcome in outcomes}
    path.write_text(json.dumps(content, indent=2))


def plot(outcome: Outcome, path: Path) -> None:
    """A PNG: each turn's latency over the time of the run, and when what was broken."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(14, 6), layout="constrained")
    points = [(at - outcome.began_at, max(latency, 1e-3)) for at, latency in latencies(outcome)]
    times, values = zip(*points, strict=True)
    axes.scatter(times, values, s=3, alpha=0.4, color="#3465a4", linewidths=0)
    names = sorted({fault.name for fault in outcome.faults})
    colours = pyplot.get_cmap("tab20")
    for fault in outcome.faults:
        colour = colours(names.index(fault.name) % 20)
        start, end = fault.at - outcome.began_at, fault.until - outcome.began_at
        axes.axvspan(start, max(end, start + 0.1), color=colour, alpha=0.35, linewidth=0)
    for name in names:
        axes.bar(0, 0, color=colours(names.index(name) % 20), alpha=0.5, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency of a turn, seconds from acceptance to settlement")
    axes.set_title(f"{outcome.storm.name}: {len(points)} turns, {len(outcome.faults)} faults")
    axes.grid(alpha=0.3)
    if names:
        figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    last = len(ordered) - 1
    ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"count": len(ordered)} | {
        name: round(ordered[math.ceil(rank * last)], 3) for name, rank in ranks.items()
    }


def _words(spread: dict[str, float]) -> str:
    count = f" of {spread['count']:.0f}"
    times = [f"{name} {value:.2f} s" for name, value in spread.items() if name != "count"]
    return ", ".join(times) + count

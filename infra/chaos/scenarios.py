"""Scenarios: storms with a name. A new one is one function and one line in `SCENARIOS`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from turnmill.infra.chaos.client import Load
from turnmill.infra.chaos.plan import Strike
from turnmill.infra.chaos.site import Size
from turnmill.infra.chaos.storm import Storm
from turnmill.schemas.turns import Lane

#: Each turn that crashes ends five workers before it is parked; the others take no worker along.
_POISON = ("[[wait=0.1]] [[crash]]", "[[memory]]", "[[exit]]")


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may choose; a scenario may have a better default where it is None."""

    seed: int
    turns: int | None = None
    conversations: int | None = None
    rate: float | None = None
    workers: int = 3
    fault_every_s: float = 4.0
    faults: tuple[str, ...] = ()


def storm(options: Options) -> Storm:
    """All faults, drawn at random."""
    load = _load(options, turns=2000, rate=60.0)
    return Storm(
        name="storm",
        load=replace(load, poison=_POISON),
        size=Size(workers=options.workers),
        fault_every_s=options.fault_every_s,
        faults=options.faults,
    )


def neighbours(options: Options) -> Storm:
    """The storm, beside a second deployment on its broker and a model of almost the same name."""
    return replace(storm(options), has_neighbours=True)


def calm(options: Options) -> Storm:
    """No fault at all: what the others are compared with."""
    return _scripted(options, _load(options, turns=2000, rate=60.0))


def broker_outage(options: Options) -> Storm:
    """The broker stopped for a minute while 50 turns a second come in."""
    outage = Strike(10.0, "stop-broker", options.seed)
    # No limit to what is open: a client that holds back would hide a refusal.
    load = replace(_load(options, turns=5000, rate=50.0), max_open=1_000_000)
    return _scripted(options, load, outage)


def takeover(options: Options) -> Storm:
    """One primary with a standby; the primary is killed again and again."""
    load = _load(options, turns=3000, rate=25.0)
    kills = [Strike(8.0, "kill-primary", options.seed) for _ in range(12)]
    storm = _scripted(options, load, *kills)
    return replace(storm, size=replace(storm.size, workers=2, mode="standby"))


def failover(options: Options) -> Storm:
    """What leads is killed, where something else takes its place: for the topologies."""
    load = _load(options, turns=3000, rate=30.0)
    # The first comes early, so that a short run has one; a killed node needs time to rejoin.
    kills = [Strike(after_s, "fail-over", options.seed) for after_s in (4.0, *[15.0] * 9)]
    return _scripted(options, load, *kills)


def affinity(options: Options) -> Storm:
    """Conversations in rounds, while workers are killed, stopped, and started again."""
    turns = options.turns or 4000
    options = replace(options, conversations=options.conversations or max(turns // 20, 1))
    load = replace(_load(options, turns=turns, rate=40.0), lane=Lane.INTERACTIVE, is_even=True)
    # The first is early, so that a short run has one.
    names = ("kill-worker", "drain-worker") * 4
    script = [Strike(15.0 if n else 3.0, name, options.seed + n) for n, name in enumerate(names)]
    return replace(_scripted(options, load, *script), least_hit_rate=0.9)


def channels(options: Options) -> Storm:
    """The storm through Slack: events in, messages out, and a platform that fails."""
    load = _load(options, turns=2000, rate=25.0)
    return Storm(
        name="",
        load=replace(load, max_open=200),
        size=Size(workers=options.workers, deliverers=3),
        fault_every_s=options.fault_every_s,
        faults=options.faults,
        has_channels=True,
    )


def _scripted(options: Options, load: Load, *script: Strike) -> Storm:
    never = Strike(float("inf"), "", 0)
    size = Size(workers=options.workers)
    return Storm(name="", load=load, size=size, script=(*script, never))


def _load(options: Options, *, turns: int, rate: float) -> Load:
    chosen = options.turns or turns
    return Load(
        turns=chosen,
        conversations=options.conversations or max(chosen // 25, 1),
        seed=options.seed,
        rate=options.rate or rate,
    )


SCENARIOS: dict[str, Callable[[Options], Storm]] = {
    "storm": storm,
    "neighbours": neighbours,
    "calm": calm,
    "broker-outage": broker_outage,
    "takeover": takeover,
    "failover": failover,
    "affinity": affinity,
    "channels": channels,
}


def make_storm(scenario: str, broker: str, options: Options) -> Storm:
    """The scenario's storm, named after it and the kind of broker it is for."""
    kind = broker.partition(":")[0]
    return replace(SCENARIOS[scenario](options), name=f"{scenario}-{kind}")

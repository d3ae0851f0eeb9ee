"""How a worker consumes, and how long it waits for what."""

from typing import Literal

from pydantic import (
    Field,
)

from turnmill.schemas.settings.section import Section
from turnmill.schemas.turns import Lane


class WorkerSettings(Section):
    #: `cluster`: all workers of a lane consume it. `standby`: load the model, and consume once no
    #: other live worker does.
    mode: Literal["cluster", "standby"] = "cluster"
    #: Turns of each lane that run at once: those of one lane never wait for a thread that another
    #: lane has.
    concurrency: int = Field(default=32, ge=1, le=4096)
    #: The lanes this worker consumes.
    lanes: tuple[Lane, ...] = (Lane.INTERACTIVE, Lane.BATCH)
    #: How long an attempt keeps its turn without a heartbeat.
    lease_s: float = Field(default=15.0, gt=0.2)
    #: How long a stopping worker lets its turns finish before it hands them back.
    drain_s: float = Field(default=30.0, ge=0)
    #: Attempts a turn may use up before it is parked.
    max_attempts: int = Field(default=5, ge=1, le=100)
    #: Attempts that died with their worker before a turn is quarantined.
    quarantine_after: int = Field(default=3, ge=1, le=100)
    #: Longest time of one attempt. A reply that takes longer is continued by the next one, without
    #: using up an attempt; an engine that said nothing to anybody for so long uses one up.
    turn_timeout_s: float = Field(default=300.0, gt=0)
    #: How long an aborted engine may still generate for a turn. After that it counts as
    #: hung: its turn is taken from it, and the process ends for a fresh one to be started.
    #: Longer than Postgres may take to answer, for which a turn may be waiting instead.
    hang_s: float = Field(default=15.0, gt=0)
    #: Where a conversation has outgrown the context window: the share of it that a summary of
    #: the turns left out may take, written by the model itself; 0: they are left out without one.
    summary_share: float = Field(default=0.0, ge=0, le=0.25)
    #: The share of the context window that passages which come with a turn (`documents`) may take;
    #: those further down their list are left out.
    documents_share: float = Field(default=0.5, gt=0, le=0.9)
    #: Chunks of a turn are kept, and shown to its readers, about once in this time.
    flush_s: float = Field(default=0.25, ge=0.01)
    #: How often lost turns and lost hints are looked for.
    rescue_every_s: float = Field(default=1.0, gt=0)
    #: Hints that no worker has claimed after this time are looked for by the relay, which compares
    #: their number with the broker's queue; those that it misses are published again.
    hint_lost_after_s: float = Field(default=4.0, gt=0)

"""`python -m turnmill.infra.chaos.breaking.crash POINT worker …`: the command line, in a process
that ends at
one step of the protocol as `kill -9` would end it.

A point is a function of ours, or Celery's, and whether the process ends before or after it; it
is wrapped from outside. CHAOS_CRASH_AT says at which call (default: the first).
"""

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Literal

#: The exit status of a process that has reached its point.
CRASHED = 70
CRASH_AT = "CHAOS_CRASH_AT"


@dataclass(frozen=True, slots=True)
class Point:
    when: Literal["before", "after"]
    #: `module:function` or `module:Class.method`.
    step: str


#: In the order of a turn's way.
POINTS = {
    "before-accept-commit": Point("after", "turnmill.producer.accept:accept_in"),
    "after-accept-commit": Point("after", "turnmill.producer.accept:accept_many"),
    "before-publish": Point("before", "turnmill.producer.relay.publisher:Publisher.publish"),
    "before-confirm": Point("after", "turnmill.producer.relay.publisher:Publisher._publish_one"),
    "after-confirm": Point("after", "turnmill.producer.relay.publisher:Publisher.publish"),
    "before-claim": Point("before", "turnmill.workers.turn.leases:Leases._claim"),
    "after-claim": Point("after", "turnmill.workers.turn.leases:Leases._claim"),
    "before-first-chunk": Point("after", "turnmill.workers.turn.prompt:build_prompt"),
    "mid-generation": Point("before", "turnmill.workers.turn.stream:Stream.add"),
    "after-flush": Point("after", "turnmill.workers.turn.stream:Stream._keep"),
    "before-settle": Point("before", "turnmill.workers.turn.settle:end_turns"),
    "before-settle-commit": Point("after", "turnmill.workers.turn.settle:advance"),
    "after-settle-commit": Point("after", "turnmill.workers.turn.settle:end_turns"),
    "before-ack": Point("before", "celery.worker.request:Request.acknowledge"),
}


def arm(point: Point, at_call: int) -> None:
    """End this process when the step is reached for the `at_call`th time, counted from 1.

    Call it before anything else has imported the step by its name.
    """
    module_name, _, path = point.step.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, import_module(module_name))
    step: Callable[..., object] = getattr(owner, name)
    lock = threading.Lock()
    left = at_call

    def count() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                os._exit(CRASHED)

    def wrapper(*args: object, **kwargs: object) -> object:
        if point.when == "before":
            count()
        result = step(*args, **kwargs)
        if point.when == "after":
            count()
        return result

    setattr(owner, name, wrapper)


if __name__ == "__main__":
    arm(POINTS[sys.argv.pop(1)], int(os.environ.get(CRASH_AT, "1")))
    # The command line, with the engine of storms in it.
    import_module("turnmill.infra.chaos.program").main()

"""SQL about times of the database's clock, which can step.

The clock steps when somebody sets it, or when a server takes over whose clock differs. After a
step back, a time that was `now` lies in the future. So every wait is bounded from both sides: a
time further in the future than anybody sets it says that the clock has stepped.

A lease cannot be bounded so, for its holder may live: it is cut to what it would be if it began
now, and the holder has that long to renew it. After a step forward, leases are judged by the time
that the clock would show without it, until their holders had time to renew them.
"""

#: The longest that an outbox row is delayed, seconds.
MAX_DELAY_S = 30.0

#: Smaller differences are drift, NTP's slewing, and a server that answers slowly; seconds.
TOLERANCE_S = 2.0


def is_due(column: str, most_s: object) -> str:
    """Build the condition that a wait has ended. Nobody sets it longer than `most_s` seconds."""
    return (
        f"({column} <= clock_timestamp()"
        f" OR {column} > clock_timestamp() + make_interval(secs => {most_s}))"
    )


#: Whether an outbox row is due.
IS_DUE = f"(is_immediate OR {is_due('due_at', MAX_DELAY_S)})"

#: Whether a worker was last seen in the future. Live ones are seen twice a second, so that one
#: died before a step back, or the step is that young.
HAS_STEPPED_BACK = f"""
EXISTS (SELECT FROM worker_liveness
    WHERE seen_at > clock_timestamp() + make_interval(secs => {TOLERANCE_S}))
"""


def is_over(lease: str) -> str:
    """Build the condition that a lease has ended. `%(latest_s)s`: `DatabaseClock.judging_s`."""
    return f"{lease} <= least(clock_timestamp(), to_timestamp(%(latest_s)s))"


def outlasts(lease: str, seconds: object) -> str:
    """Build the condition that a lease ends later than one of `seconds` that begins now."""
    return f"{lease} > clock_timestamp() + make_interval(secs => {seconds} + {TOLERANCE_S})"


def within(column: str, seconds: object) -> str:
    """Build the condition that the clock shows a time at most `seconds` away from the column's."""
    span = f"make_interval(secs => {seconds})"
    return f"({column} BETWEEN clock_timestamp() - {span} AND clock_timestamp() + {span})"

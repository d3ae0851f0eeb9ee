"""SQL about times of the database's clock, which can step.

The clock steps when somebody sets it, or when a server takes over whose clock differs. After a
step back, a time that was `now` lies in the future. So every wait is bounded from both sides: a
time further in the future than anybody sets it says that the clock has stepped.
"""

#: The longest that an outbox row is delayed, seconds.
MAX_DELAY_S = 30.0

#: Whether an outbox row is due.
IS_DUE = f"""
(is_immediate OR due_at <= clock_timestamp()
    OR due_at > clock_timestamp() + make_interval(secs => {MAX_DELAY_S}))
"""


def within(column: str, seconds: object) -> str:
    """Build the condition that the clock shows a time at most `seconds` away from the column's."""
    span = f"make_interval(secs => {seconds})"
    return f"({column} BETWEEN clock_timestamp() - {span} AND clock_timestamp() + {span})"

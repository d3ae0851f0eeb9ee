"""How far a server's clock is from ours, with the way there and back halved."""

import time
from collections.abc import Callable, Iterator

from turnmill.producer.doctor.findings import Finding, note, warning

#: Beyond this, times in logs and tables of several machines cannot be put in order.
TOLERATED_S = 1.0
_TRIES = 3


def local_time() -> float:
    return time.time()


def compare(server: str, read_s: Callable[[], float]) -> Iterator[Finding]:
    """`read_s` asks the server for its Unix time; of three answers the quickest counts."""
    way_s, skew_s = min((_measure(read_s) for _ in range(_TRIES)), key=lambda answer: answer[0])
    fix = "run an NTP client (chrony, systemd-timesyncd) on both machines"
    if abs(skew_s) - way_s / 2 > TOLERATED_S:
        direction = "ahead of" if skew_s > 0 else "behind"
        yield warning(f"{server}'s clock is {abs(skew_s):.1f} s {direction} this machine's", fix)
    elif way_s / 2 > TOLERATED_S:
        yield note(f"{server} answers too slowly ({way_s:.1f} s) to compare clocks")


def _measure(read_s: Callable[[], float]) -> tuple[float, float]:
    started_s, before = time.monotonic(), local_time()
    there = read_s()
    way_s = time.monotonic() - started_s
    return way_s, there - (before + way_s / 2)

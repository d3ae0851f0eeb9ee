"""`turnmill demo` on a machine with a quarter of this one's CPU time (`make test-slow`)."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.screen import Screen
from tests.requirements import missing

#: The share of the machine's CPU time.
SHARE = float(os.environ.get("SLOW_SHARE", 1))

#: Somebody who watches a terminal for longer thinks that it hangs, seconds.
SILENCE_S = 5.0

_PERIOD_US = 100_000
_CGROUPS = Path("/sys/fs/cgroup")

pytestmark = pytest.mark.needs("slow")


@pytest.fixture
def slow_group() -> Iterator[Path]:
    """A control group with a share of the CPU time, of either version.

    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    quota = int(SHARE * (os.cpu_count() or 1) * _PERIOD_US)
    is_first = (_CGROUPS / "cpu").is_dir()
    group = (_CGROUPS / "cpu" if is_first else _CGROUPS) / f"turnmill-slow-{os.getpid()}"
    try:
        group.mkdir()
        if is_first:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
    except OSError as error:
        missing(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def longest_silences(screen: Screen, until_s: float) -> list[tuple[float, str]]:
    """Watch until the command has ended; each silence that was too long, and what stood there."""
    found, shown, heard_at = [], "", time.monotonic()
    deadline = heard_at + until_s
    is_over = False
    while not is_over:
        assert time.monotonic() < deadline, screen.shown[-2000:]
        is_over = screen.has_ended()
        now, text = time.monotonic(), screen.read()
        if text != shown or is_over:
            if now - heard_at > SILENCE_S:
                found.append((round(now - heard_at, 1), shown[-160:]))
            shown, heard_at = text, now
        time.sleep(0.05)
    return found


def test_nothing_of_the_demo_is_silent_for_long_and_no_ticket_fails(
    make_terminal: Callable[..., Any], slow_group: Path
) -> None:
    terminal = make_terminal()
    if os.environ.get("SLOW_MODELS") == "fresh":
        # The model is fetched and converted, too.
        terminal.environment["TURNMILL_ENGINE__MODELS_DIR"] = str(terminal.folder / "models")
    tokens = os.environ.get("SLOW_TOKENS")
    screen = Screen(terminal, "demo", *(("--max-tokens", tokens) if tokens else ()))
    (slow_group / "cgroup.procs").write_text(str(screen.process.pid))
    try:
        silences = longest_silences(screen, 3600)
    finally:
        screen.close()
        terminal.kill()
    assert screen.process.returncode == 0, screen.shown[-4000:]
    assert re.search(r"(\d+) of \1 completed, 0 failed", screen.shown), screen.shown[-4000:]
    assert silences == []
    assert terminal.processes() == []

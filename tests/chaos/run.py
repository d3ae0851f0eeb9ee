"""`turnmill chaos`: storms one after the other, and their reports."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
from rich.console import Console

from turnmill.chaos.report import plot, show, write_json
from turnmill.chaos.site import open_servers
from turnmill.chaos.storm import Outcome, Storm, run_storm


def run_storms(
    storms: Sequence[tuple[Storm, str]], out: Path, database_url: str | None, console: Console
) -> bool:
    """Run each storm on its broker (a kind that is started here, or a URL); true: all kept.

    Reports, records and logs are left in `out`.

    Raises:
        StackError: a server or process does not start.
        InvalidInput: there is no such broker.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for storm, broker in storms:
        folder = out / f"{time.strftime('%Y%m%d-%H%M%S')}-{storm.name}"
        folder.mkdir()
        _log_to(folder / "run.log")
        with (
            tempfile.TemporaryDirectory(prefix="turnmill-chaos-") as data,
            open_servers(_opened(Path(data)), broker, database_url) as servers,
        ):
            outcome = run_storm(storm, servers, folder, console.print)
        show(outcome, console)
        plot(outcome, folder / "latency.png")
        write_json([outcome], folder / "figures.json")
        console.print(f"Plot, figures, record and logs: {folder}")
        outcomes.append(outcome)
    return all(outcome.verdict.is_clean for outcome in outcomes)


def _log_to(path: Path) -> None:
    """What dies is expected to; the terminal is for the progress."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=path.open("a")))


def _opened(folder: Path) -> Path:
    """The servers' account must be able to enter."""
    folder.chmod(0o755)
    return folder

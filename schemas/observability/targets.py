"""Entries for Prometheus' file service discovery: one file a process, in the data folder.

The process locks its entry for as long as it lives. An entry whose lock is free was left by a
process that was killed, whatever became of its process id, and is removed by the next process
that starts and by the embedded stack.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

log = structlog.get_logger()

FOLDER = "targets"


@contextmanager
def listed_target(
    data: Path, component: str, address: str, labels: Mapping[str, str]
) -> Iterator[None]:
    """List an address inside the block, if there is a data folder that can be written to."""
    folder = data / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        remove_dead_targets(data)
        path = folder / f"{component}-{os.getpid()}-{address.rpartition(':')[2]}.json"
        target = {"targets": [address], "labels": {"component": component, **labels}}
        descriptor = _write_locked(path, json.dumps([target]))
    except OSError as error:
        # No stack runs from here, or the folder is read-only: Prometheus has other discoveries.
        log.debug("metrics.unlisted", folder=str(folder), error=type(error).__name__)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def remove_dead_targets(data: Path) -> None:
    """Remove the entries of processes that have died."""
    for path in (data / FOLDER).glob("*.json"):
        with suppress(OSError):
            _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    """Raises `BlockingIOError` if the entry's process lives."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def _write_locked(path: Path, text: str) -> int:
    """Write a file at once, locked before it has its name; its open descriptor."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.fchmod(descriptor, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, text.encode())
        Path(draft).replace(path)
    except BaseException:
        os.close(descriptor)
        Path(draft).unlink(missing_ok=True)
        raise
    return descriptor

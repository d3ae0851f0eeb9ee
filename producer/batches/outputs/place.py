"""Where results go: never over the backlog, over another file only on request."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.registry import split_format

#: What file systems without hard links answer.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def default_output(backlog: Path) -> Path:
    """The results file beside a backlog: different for any two backlogs of a folder."""
    name, ending = split_format(backlog)
    return backlog.with_name(f"{name}-results{ending}")


def check_place(path: Path, *, backlog: Path | None = None, overwrite: bool = False) -> None:
    """Find out before the work whether results can be written.

    Raises:
        InvalidInput: the path is the backlog, an existing file, or in a folder without access.
    """
    if backlog is not None and _is_same(path, backlog):
        raise InvalidInput(f"'{path}' is the backlog. Name another file for the results.")
    if path.is_dir():
        raise InvalidInput(f"'{path}' is a folder. Name a file in it.")
    if not overwrite:
        _refuse_existing(path)
    with replaced(path, overwrite=True, is_trial=True) as part:
        part.touch(exist_ok=False)


@contextmanager
def replaced(path: Path, *, overwrite: bool, is_trial: bool = False) -> Iterator[Path]:
    """A file beside this one that takes its place when all has been written."""
    part = path.with_name(f".turnmill-{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if not is_trial:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            _put(part, path, overwrite)
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be written: {error.strerror or error}.") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _put(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        part.replace(path)
        return
    try:
        # Unlike a rename, a link never replaces a file that came into being meanwhile.
        path.hardlink_to(part)
    except FileExistsError:
        _refuse_existing(path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _refuse_existing(path)
        part.replace(path)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise InvalidInput(
            f"'{path}' exists already. Name another file with -o, or replace it with --overwrite."
        )


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False

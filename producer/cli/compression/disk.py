"""What a disk or a damaged file does to `compress`, `evaluate` and `models`, as sentences."""

import errno
import os
import re
import sys

from turnmill.schemas.errors import InvalidInput, SettingsError, TurnmillError

#: The commands that read and write models and reports.
COMMANDS = frozenset(("compress", "evaluate", "models"))

_FULL = (
    "Free space there, or keep models on a larger disk (TURNMILL_DATA), and run the same command "
    "again: what it finished is not repeated."
)
_FORBIDDEN = (
    "Allow this user to write there, or name another folder: --output for reports, TURNMILL_DATA "
    "for the store of models."
)
_MISPLACED = (
    "Name another path, whose folders are folders: --output for reports, TURNMILL_DATA for the "
    "store of models."
)
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG), _MISPLACED
    ),
    errno.EIO: "The disk may be failing: see the system's log, and use another one.",
}

#: How safetensors, written in Rust, tells the system's number.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def error_of(error: Exception) -> TurnmillError | None:
    """Return what to tell of a file that cannot be read or written; None for other errors."""
    if isinstance(error, OSError):
        return _of_system(error.errno, error.filename)
    if (match := _OS_ERROR.search(str(error))) and _is_of_safetensors(error):
        return _of_system(int(match[1]), None)
    if _is_of_safetensors(error):
        return InvalidInput(
            f"A file of weights is damaged or cut short: {error}. Download or copy the model "
            "again.",
            param="model",
        )
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        # torch.save keeps the system's number to itself; it fails so when the disk is full.
        return _of_system(errno.ENOSPC, None)
    return None


def _of_system(number: int | None, path: object) -> SettingsError | None:
    if number not in _ADVICE:
        return None
    return SettingsError(
        f"{path or _places()} cannot be read or written: {os.strerror(number)}. {_ADVICE[number]}"
    )


def _places() -> str:
    """Where the libraries write that name no path."""
    from turnmill.schemas.settings import load_settings

    return f"A file in {load_settings().models_dir} or in the folder of --output"


def _is_of_safetensors(error: Exception) -> bool:
    library = sys.modules.get("safetensors")
    return library is not None and isinstance(error, library.SafetensorError)

"""Read a document in a child process: what goes wrong there is told in one sentence."""

import shutil
import tempfile
import time
from pathlib import Path

from turnmill.schemas.citations.addresses import address_of
from turnmill.schemas.content import storable
from turnmill.schemas.errors import InvalidInput, LimitExceeded
from turnmill.schemas.files.files import shown_name
from turnmill.schemas.process.isolated import Limits, isolated
from turnmill.workers.readers.cutting import Read, read

#: Enough for 5,000 pages of text, on a slow machine.
LIMITS = Limits(memory_bytes=1 << 30, cpu_s=120, wait_s=300.0)


_FOLDER = "turnmill-document-"
#: Nobody reads a document for so long, seconds.
_LEFTOVER_S = 3600.0


def read_isolated(name: str, content: bytes, limits: Limits = LIMITS) -> Read:
    """Read a document and cut it into passages. The suffix of its name tells its format.

    Raises:
        InvalidInput: it cannot be read; the message says why, and what to do.
        SettingsError: a library is missing.
        PermanentError: the child process died.
    """
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder:
        path = Path(folder, _file_name(name))
        path.write_bytes(content)
        try:
            return _storable(isolated(read, path, limits=limits, folder=Path(folder)))
        except LimitExceeded as error:
            raise InvalidInput(
                f"{error.message} A document may take {limits.memory_bytes >> 20} MiB and "
                f"{limits.cpu_s} s to be read. Split it, or save it as plain text."
            ) from None


def _storable(found: Read) -> Read:
    passages = [
        each._replace(
            heading=storable(each.heading), content=storable(each.content), url=_address(each.url)
        )
        for each in found.passages
    ]
    return Read(storable(found.title), passages, _address(found.url))


def _address(url: str | None) -> str | None:
    """What the child takes for an address; a document may have made it say anything."""
    return address_of(url) if url else None


def forget_leftovers() -> None:
    """Delete what workers left on the disk that were killed while they read."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        try:
            is_old = folder.stat().st_mtime < time.time() - _LEFTOVER_S
        except OSError:
            continue
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)


def _file_name(name: str) -> str:
    """A name that a file may have, with the suffix of `name`: titles are made of it."""
    shown = shown_name(name)
    suffix = Path(shown).suffix[:10]
    return f"{Path(shown).stem[:60]}{suffix}"

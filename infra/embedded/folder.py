"""The data folder: what a stack keeps there, who may read it, and one owner at a time.

The folder's own files (secrets, ports, logs) belong to whoever runs the stack. Each server
has a sub-folder of its own. PostgreSQL refuses to run as root; the servers of a stack that root
starts therefore run under a user id that no account has, and own their sub-folders. The
permissions of the data folder and of its parents are never changed.
"""

import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from turnmill.schemas.errors import StackError

#: The user and group of root's servers. No distribution and no tool assigns ids from 60578 to
#: 61183, so no other program runs as this user: https://systemd.io/UIDS-GIDS/
SERVER_UID = 60_717
NOBODY = 65_534
SECRETS_FILE = "secrets.json"
PORTS_FILE = "ports.json"


def server_uid() -> int | None:
    """The user id that servers are given; none unless we are root."""
    return SERVER_UID if os.geteuid() == 0 else None


class FolderLock:
    """Held until released, or until its process dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class DataFolder:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()
        self._made: list[Path] = []

    def create(self) -> None:
        """Create what is missing; raises `StackError` where a server could not get in."""
        with self._explained():
            self._made = self._create_missing()
            closed = next(self._closed_to_servers(), None)
        if closed is not None:
            raise StackError(
                f"The data folder {self.path} is out of reach for the user id {SERVER_UID}, which "
                f"runs the servers that root starts: {closed} is closed to others. Choose another "
                f"folder with --data, or run: chmod o+x {closed}"
            )

    def forget(self) -> None:
        """Delete what `create` made, with all that was put there since; nothing that was there."""
        if self.path in self._made:
            shutil.rmtree(self.path, ignore_errors=True)
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()
        self._made = []

    def lock(self, name: str) -> FolderLock:
        """Refuse a second owner of the same folder."""
        with self._explained():
            descriptor = os.open(self.path / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 20, 0).decode() or "unknown"
            os.close(descriptor)
            raise StackError(
                f"The data folder {self.path} is in use by another stack (process {owner}). "
                "Stop that one, or choose another folder with --data."
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return FolderLock(descriptor)

    def is_locked(self, name: str) -> bool:
        """Whether a process that lives holds the lock, as far as we may look."""
        try:
            descriptor = os.open(self.path / f"{name}.lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def server_folder(self, name: str) -> Path:
        """A folder that only its server's user enters, once `give_to_server` was called."""
        path = self.path / name
        with self._explained():
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def give_to_server(self, path: Path) -> None:
        """Make a folder and all it holds the servers' own; not while a server uses it.

        Folders of stacks that ran before, as `nobody` or as another user, change hands here.
        """
        uid = server_uid()
        if uid is None or path.stat().st_uid == uid:
            return
        with self._explained():
            for folder, _, files in os.walk(path, topdown=False):
                for name in files:
                    os.chown(Path(folder, name), uid, uid, follow_symlinks=False)
                # Last, so that an interrupted change of hands is repeated.
                os.chown(folder, uid, uid)

    def logs(self) -> Path:
        path = self.path / "logs"
        with self._explained():
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def secret(self, name: str) -> str:
        """A password, made on first use and kept."""
        value: str = self._kept(SECRETS_FILE, name, lambda: secrets.token_hex(24))
        return value

    def kept_port(self, name: str) -> int | None:
        port: int | None = self._kept(PORTS_FILE, name, lambda: None)
        return port

    def keep_port(self, name: str, port: int) -> None:
        with self._updating(PORTS_FILE) as content:
            content[name] = port

    def write_private(self, name: str, text: str, *, uid: int | None = None) -> Path:
        """Write a file at once, readable by its owner only: this user, or ours."""
        path = self.path / name
        descriptor, draft = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            if uid is not None:
                os.fchown(descriptor, uid, uid)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(draft).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(draft).unlink()
            raise
        return path

    def _kept(self, file: str, name: str, make: Callable[[], object]) -> Any:
        with self._updating(file) as content:
            if name not in content and (value := make()) is not None:
                content[name] = value
            return content.get(name)

    @contextmanager
    def _updating(self, file: str) -> Iterator[dict[str, object]]:
        """The file's content to read and change; one process at a time."""
        with self._explained(), (self.path / ".files.lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            path = self.path / file
            content: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
            before = dict(content)
            yield content
            if content != before:
                self.write_private(file, json.dumps(content, indent=2))

    def _create_missing(self) -> list[Path]:
        mode = 0o711 if server_uid() is not None else 0o700
        missing = [f for f in reversed([self.path, *self.path.parents]) if not f.exists()]
        for folder in missing:
            folder.mkdir(exist_ok=True)
            # Not left to mkdir, which subtracts the umask.
            folder.chmod(mode)
        return missing

    def _closed_to_servers(self) -> Iterator[Path]:
        if (uid := server_uid()) is None:
            return
        for folder in [*reversed(self.path.parents), self.path]:
            status = folder.stat()
            needed = 0o100 if status.st_uid == uid else 0o001
            if not status.st_mode & needed:
                yield folder

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StackError(
                f"The data folder {self.path} cannot be used: {error.strerror} "
                f"({error.filename}). Choose another folder with --data."
            ) from error
        except ValueError as error:
            raise StackError(f"A file in {self.path} is damaged: {error}") from error

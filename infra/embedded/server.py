"""What the embedded servers share: a folder, a port, a supervisor, a life as a context manager."""

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

from turnmill.infra.embedded.child import Child
from turnmill.infra.embedded.folder import DataFolder, FolderLock
from turnmill.infra.embedded.ports import PortClaim, claim_port
from turnmill.infra.embedded.supervisor import Supervisor
from turnmill.schemas.errors import StackError

#: How long a server whose owner was killed may take to finish.
_PREDECESSOR_S = 30.0
_LOOK_EVERY_S = 0.1


class EmbeddedServer(ABC):
    """One server. `with` runs it alone; a stack calls `open`, supervises `children`, `close`s."""

    name: ClassVar[str]

    def __init__(self, folder: Path | str) -> None:
        self.folder = DataFolder(folder)
        self._lock: FolderLock | None = None
        self._ports: dict[str, PortClaim] = {}
        self._supervisor: Supervisor | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """How clients reach it, password included."""

    @abstractmethod
    def children(self) -> list[Child]:
        """Its processes, the server itself last. Needs `open`."""

    @abstractmethod
    def _prepare(self) -> None:
        """The server's own part of `open`."""

    @property
    def port(self) -> int:
        return self._port_of(self.name)

    @property
    def pid(self) -> int | None:
        return self._supervisor.pid_of(self.name) if self._supervisor else None

    def open(self) -> None:
        """Take the folder and a port, the same as last time if it is free."""
        self.folder.create()
        self._lock = self.folder.lock(self.name)
        try:
            self._claim_port(self.name)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        while self._ports:
            self._ports.popitem()[1].release()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(self) -> None:
        self.open()
        try:
            self._supervisor = Supervisor(self.children(), self.folder.logs())
            self._supervisor.start()
        except BaseException:
            self.close()
            raise

    def stop(self, *, hurry: bool = False) -> None:
        supervisor, self._supervisor = self._supervisor, None
        try:
            if supervisor is not None:
                supervisor.stop(hurry=hurry)
        finally:
            self.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _claim_port(self, name: str) -> None:
        kept = self.folder.kept_port(name)
        claim = self._ports[name] = claim_port(*([] if kept is None else [kept]))
        self.folder.keep_port(name, claim.port)

    def _port_of(self, name: str) -> int:
        if name not in self._ports:
            raise StackError(f"The embedded {self.name} is not running.")
        return self._ports[name].port


def await_predecessor(pid_file: Path, folder: Path, program: str) -> None:
    """Wait for the server of a killed owner, which is still stopping: two would ruin the data.

    Its processes run `program` in `folder`. Those that are paused are resumed, so that they can
    stop; whatever is there after `_PREDECESSOR_S` is killed. A zombie that nobody reaps, or a
    stranger with the same process id, would keep PostgreSQL from starting: the file is removed.
    """
    deadline = time.monotonic() + _PREDECESSOR_S
    while left := _running(program, folder):
        for process in left:
            with suppress(psutil.Error):
                if time.monotonic() > deadline:
                    process.kill()
                elif process.status() == psutil.STATUS_STOPPED:
                    process.resume()
        time.sleep(_LOOK_EVERY_S)
    with suppress(OSError, ValueError, IndexError):
        if psutil.pid_exists(int(pid_file.read_text().split()[0])):
            pid_file.unlink()


def _running(program: str, folder: Path) -> list[psutil.Process]:
    """The processes of a server, children that have lost their parent among them; no zombies."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() == program and Path(process.cwd()) == folder:
                found.append(process)
    return found

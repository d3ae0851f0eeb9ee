"""A command in the foreground of a terminal of its own."""

import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Becomes a command in the foreground of a terminal, which hears of its end under `nohup` too.
FOREGROUND = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Screen:
    """A command in the foreground of a terminal of its own."""

    def __init__(self, terminal: Any, *words: str) -> None:
        self.shown = ""
        self._keyboard, inner = pty.openpty()
        program = str(Path(sys.executable).with_name("turnmill"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", FOREGROUND, program, *words],
            env=terminal.environment,
            cwd=terminal.folder,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        os.set_blocking(self._keyboard, False)
        self._is_open = True

    def end(self, way: str) -> None:
        match way:
            case "ctrl-c":
                os.write(self._keyboard, b"\x03")
            case "closed terminal":
                self.close()
            case _:
                self.process.send_signal(signal.Signals[way])

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._keyboard)

    def says(self, text: str) -> bool:
        return text in self.read()

    def has_ended(self) -> bool:
        self.read()
        return self.process.poll() is not None

    def read(self) -> str:
        """All that was shown until now. A terminal that nobody reads from stops who prints."""
        # EIO: nobody has the other end open any more.
        with suppress(BlockingIOError, OSError):
            while self._is_open and (piece := os.read(self._keyboard, 65536)):
                self.shown += piece.decode(errors="replace")
        return self.shown

"""End a command in order, whichever signal ends it.

A closed block stops what it started. So the first SIGINT, SIGTERM or SIGHUP becomes an exception in
the main thread, and every `with` and `finally` on the way out does its work. What a process starts
with `launch_command` ends with it even where no signal handler runs: after `kill -9`.
"""

import errno
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: So many Ctrl-C, or SIGTERM, end the process at once, whatever it is closing.
_FORCED_AFTER = 3

#: Interrupts what the main thread waits for, and does nothing else; by default it is ignored.
_NUDGE = signal.SIGURG
#: Seconds from a signal to the nudges that follow it.
_NUDGE_AFTER_S = (0.05, 0.2, 1.0)

_CAUSES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP: its terminal was closed",
}

#: What the process received since it began to listen, and whether `Ended` was raised for it.
_received: list[signal.Signals] = []
_raised = False
#: Called at every further signal, the innermost last.
_hurries: list[Callable[[], None]] = []
_terminals: list[int] = []


class Ended(KeyboardInterrupt):
    """A signal asked this process to end. Handlers of Ctrl-C take it for one."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def exit_status(number: int = signal.SIGINT) -> int:
    """What a shell calls the status of a process that this signal ended."""
    return 128 + number


def ended_by() -> signal.Signals | None:
    """The first signal that asked this process to end, if there was one."""
    return _received[0] if _received else None


def describe_end() -> str:
    """One line for the person at the terminal."""
    return f"Stopped by {_CAUSES[ended_by() or signal.SIGINT]}."


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Raise `Ended` in the main thread at the first SIGINT, SIGTERM or SIGHUP within the block.

    The next one hurries what is being closed (see `hurried_by`), and the third Ctrl-C or SIGTERM
    ends the process at once. A signal that is ignored stays so, as `nohup` wants it.
    """
    global _raised
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _received.clear()
    _raised = False
    _terminals[:] = [descriptor for descriptor in range(3) if os.isatty(descriptor)]
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    try:
        with _nudged():
            yield
    finally:
        # A process that was asked to end does so: Python's own shutdown is not interrupted.
        if not _received:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def hurried_by(hurry: Callable[[], None]) -> Iterator[None]:
    """Close something to the end: a signal within the block calls `hurry`.

    If it was the first one, `Ended` is raised after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _hurries.append(hurry)
    if len(_received) > 1:
        hurry()
    try:
        yield
    finally:
        _hurries.pop()
    if _received and not _hurries:
        _raise_once(_received[0])


def _on_signal(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    _received.append(received)
    if received is signal.SIGHUP:
        _leave_terminals()
    # A terminal that closes may send several SIGHUP; they are one request.
    if sum(each is not signal.SIGHUP for each in _received) >= _FORCED_AFTER:
        os._exit(exit_status(number))
    if _hurries:
        for hurry in list(_hurries):
            hurry()
    else:
        _raise_once(received)


def _raise_once(number: signal.Signals) -> None:
    global _raised
    if not _raised:
        _raised = True
        raise Ended(number)


@contextmanager
def _nudged() -> Iterator[None]:
    """Let no signal wait for the end of a blocking call.

    One that arrives just before such a call does not interrupt it, and Python runs its handler only
    afterwards.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handler = signal.signal(_NUDGE, _on_nudge)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: _raise_later(unraisable, writer, hook)
    threading.Thread(target=_nudge, args=(reader,), name="nudge", daemon=True).start()
    try:
        yield
    finally:
        if not _received:
            signal.set_wakeup_fd(before)
            signal.signal(_NUDGE, handler)
            sys.unraisablehook = hook
            os.close(writer)


def _raise_later(
    unraisable: "sys.UnraisableHookArgs",
    signals: int,
    hook: Callable[["sys.UnraisableHookArgs"], object],
) -> None:
    """Hear of an `Ended` that Python ignored, as it does within `__del__` and callbacks of weak
    references and of C; the next nudge raises it where it is heard.
    """
    global _raised
    if isinstance(unraisable.exc_value, Ended):
        _raised = False
        os.write(signals, bytes([unraisable.exc_value.number]))
    else:
        hook(unraisable)


def _nudge(reader: int) -> None:
    """Interrupt the main thread after each signal, and until `Ended` was raised."""
    main = threading.main_thread().ident
    assert main is not None
    with open(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] == _NUDGE:
                continue
            for delay_s in _NUDGE_AFTER_S:
                time.sleep(delay_s)
                signal.pthread_kill(main, _NUDGE)
            while _received and not _raised:
                time.sleep(_NUDGE_AFTER_S[-1])
                signal.pthread_kill(main, _NUDGE)


def _on_nudge(number: int, frame: FrameType | None) -> None:
    if _received and not _hurries:
        _raise_once(_received[0])


def _leave_terminals() -> None:
    """Print to nowhere: writing to a closed terminal fails, and would cut the closing short."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in _terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def is_terminal_closed() -> bool:
    """Whether a terminal that this process reads from or prints to has hung up."""
    for descriptor in range(3):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                return True
    return False


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` in a thread of its own at each SIGTERM and SIGINT.

    A handler interrupts the main thread anywhere, also while it holds the lock that `stop` needs:
    `threading.Event.set` would then wait for ever.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda *_: threading.Thread(target=stop, name="stop", daemon=True).start()
        )


def leave_at_once(status: int) -> None:
    """End the process without Python's own shutdown, which waits for threads that may not end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)

"""Signals end a process in order: what it opened is closed, and what it started ends with it."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

Eventually = Callable[..., None]

#: Under `nohup` a process inherits that it ignores SIGHUP.
HEARD = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"

#: A block that is closed at leisure, or quickly where somebody hurries it.
CLOSING = """
import queue, time
from turnmill.schemas.process.ending import ending_in_order, hurried_by

# Its `put` is safe in a signal handler, and an Event's `set` is not.
hurries = queue.SimpleQueue()
with ending_in_order():
    try:
        print("open", flush=True)
        time.sleep(60)
    finally:
        with hurried_by(lambda: hurries.put("closed in a hurry")):
            print("closing", flush=True)
            print(hurries.get(timeout=60), flush=True)
"""

#: Ends normally, and is told to end while it closes.
LATE = """
import queue
from turnmill.schemas.process.ending import Ended, ending_in_order, hurried_by

hurries = queue.SimpleQueue()
with ending_in_order():
    try:
        with hurried_by(lambda: hurries.put("")):
            print("closing", flush=True)
            hurries.get(timeout=60)
        print("went on")
    except Ended as ended:
        print("ended by", ended.number.name)
"""

#: Waits where a signal interrupts nothing, as one that arrives just before the wait does.
MISSED = """
import signal, threading, time
from turnmill.schemas.process.ending import Ended, ending_in_order

with ending_in_order():
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    lock = threading.Lock()
    lock.acquire()
    try:
        print("open", flush=True)
        lock.acquire()
    except Ended as ended:
        print("ended by", ended.number.name, flush=True)
"""

#: Receives its signal where Python ignores what is raised.
IGNORED = """
import gc, signal, sys, time, weakref
from turnmill.schemas.process.ending import Ended, ending_in_order

class Deaf:
    def __del__(self):
        if sys.argv[1] == "finalizer":
            signal.raise_signal(signal.SIGTERM)

def collected(*_):
    signal.raise_signal(signal.SIGTERM)

with ending_in_order():
    try:
        deaf = Deaf()
        reference = weakref.ref(deaf, collected if sys.argv[1] == "weak reference" else None)
        del deaf
        if sys.argv[1] == "garbage collection":
            gc.callbacks.append(collected)
            gc.collect()
            gc.callbacks.clear()
        print("open", flush=True)
        time.sleep(600)
    except Ended as ended:
        print("ended by", ended.number.name, flush=True)
"""

#: Is told to stop while it holds what stopping needs.
HOLDING = """
import signal, threading
from turnmill.schemas.process.ending import stop_on_signals

stopping = threading.Condition()

def stop():
    with stopping:
        stopping.notify()

stop_on_signals(stop)
with stopping:
    signal.raise_signal(signal.SIGTERM)
    print("stopped" if stopping.wait(60) else "went on", flush=True)
"""

#: Closes without a hurry, and cannot be hurried.
STUBBORN = """
import time
from turnmill.schemas.process.ending import ending_in_order

with ending_in_order():
    try:
        print("open", flush=True)
        time.sleep(60)
    finally:
        print("closing", flush=True)
        for _ in range(600):
            time.sleep(0.1)
"""

#: Says on its terminal that it closes, and does so afterwards.
TALKING = """
import sys, time
from pathlib import Path
from turnmill.schemas.process.ending import ending_in_order

with ending_in_order():
    try:
        print("open", flush=True)
        time.sleep(60)
    finally:
        print("closing", flush=True)
        Path(sys.argv[1]).touch()
"""

#: Starts a child that ignores SIGTERM and has a child in turn.
PARENT = """
import sys, time
from turnmill.schemas.process.dependent import dependent
from turnmill.schemas.process.ending import ending_in_order

CHILD = '''
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(inner.pid, flush=True)
time.sleep(60)
'''
with ending_in_order(), dependent([sys.executable, "-c", CHILD], grace_s=0.2) as child:
    print(child.pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def python(code: str, *words: str) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-c", HEARD + code, *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def send(process: "subprocess.Popen[str]", *numbers: signal.Signals) -> None:
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_hurries_what_is_closed(number: signal.Signals) -> None:
    with python(CLOSING) as process:
        assert say(process) == "open"
        process.send_signal(number)
        assert say(process) == "closing"
        process.send_signal(number)
        assert say(process) == "closed in a hurry"


def test_a_signal_during_the_closing_ends_the_process_after_it() -> None:
    with python(LATE) as process:
        assert say(process) == "closing"
        process.send_signal(signal.SIGTERM)
        assert say(process) == "ended by SIGTERM"


def test_a_signal_that_interrupts_nothing_ends_the_wait() -> None:
    with python(MISSED) as process:
        assert say(process) == "open"
        process.send_signal(signal.SIGTERM)
        assert say(process) == "ended by SIGTERM"


@pytest.mark.parametrize("where", ["finalizer", "weak reference", "garbage collection"])
def test_an_end_that_was_ignored_is_raised_later(where: str) -> None:
    with python(IGNORED, where) as process:
        assert say(process) == "open"
        assert say(process) == "ended by SIGTERM"


def test_a_process_that_holds_what_stopping_needs_is_stopped() -> None:
    with python(HOLDING) as process:
        assert say(process) == "stopped"


def test_the_third_ctrl_c_ends_a_process_at_once() -> None:
    with python(STUBBORN) as process:
        assert say(process) == "open"
        process.send_signal(signal.SIGINT)
        assert say(process) == "closing"
        send(process, signal.SIGINT, signal.SIGINT)
        assert process.wait(10) == 130


def test_a_terminal_that_hangs_up_several_times_is_one_request_to_end(tmp_path: Path) -> None:
    with python(CLOSING) as process:
        assert say(process) == "open"
        send(process, *[signal.SIGHUP] * 4)
        assert say(process) == "closing"
        assert say(process) == "closed in a hurry"


def test_a_closed_terminal_does_not_cut_the_closing_short(
    tmp_path: Path, eventually: Eventually
) -> None:
    keyboard, inner = pty.openpty()
    foreground = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{HEARD}{foreground}\n{TALKING}", str(tmp_path / "closed")],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    ):
        os.close(inner)
        assert b"open" in os.read(keyboard, 100)
        os.close(keyboard)
        eventually((tmp_path / "closed").exists)


def test_nohup_is_obeyed() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with python(ignoring + CLOSING) as process:
        assert say(process) == "open"
        send(process, signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert say(process) == "closing"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent(number: signal.Signals, eventually: Eventually) -> None:
    with python(PARENT) as process:
        pids = {int(say(process)), int(say(process))}
        family: Sequence[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
        assert {each.pid for each in family} == pids
        process.send_signal(number)
        process.wait(20)
        # After SIGTERM the whole session of the child; after SIGKILL what the kernel ties to it.
        tied = family if number is signal.SIGTERM else family[:1]
        eventually(lambda: not any(each.is_running() for each in tied))
        for each in family:
            if each.is_running():
                each.kill()

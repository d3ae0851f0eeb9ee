"""Start a program that cannot outlive the process that asked for it.

Run as a script, `python -I -S launch.py PARENT SIGNAL UID COMMAND...`: it gives up root if
UID says so, asks the kernel to send SIGNAL when the parent dies (even by `kill -9`), and
becomes COMMAND. A program of its own, and not a `preexec_fn`, because the supervisor has
threads, and Python code between fork and exec may then deadlock.

The kernel means the parent's *thread*: start children from a thread that lives as long as they do.
Other systems than Linux have no such signal; there a child outlives a parent that was killed.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

#: From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
KEEP_USER = -1


def launch_command(
    command: Sequence[str],
    *,
    uid: int | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> list[str]:
    """The command line that starts `command` as a dependent child of this process."""
    user = KEEP_USER if uid is None else uid
    words = (os.getpid(), death_signal.value, user)
    return [sys.executable, "-I", "-S", __file__, *map(str, words), *command]


def main(parent: int, death_signal: int, uid: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if uid != KEEP_USER:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    # After the change of user, which clears it. `exec` keeps it.
    if sys.platform == "linux" and libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("The parent died before its child had started.")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"Cannot run {command[0]}: {error.strerror}.")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])

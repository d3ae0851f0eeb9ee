"""Who gives a command: for the record that others read."""

import getpass
import os
import socket


def who() -> str:
    """Name the person by the account and the machine, as `ada@ops-1`."""
    try:
        account = getpass.getuser()
    except (KeyError, OSError):
        # In a container that runs as a number.
        account = str(os.getuid())
    return f"{account}@{socket.gethostname()}"

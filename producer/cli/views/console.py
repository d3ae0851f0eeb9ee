"""The console that commands print to."""

import os
import sys

from rich.console import Console

#: Of output that no terminal shows: programs and files want names whole. Both have to be named,
#: or Rich believes TERM=dumb.
PIPED_WIDTH, PIPED_HEIGHT = 200, 25


def make_console() -> Console:
    """As wide as the terminal, or as COLUMNS says."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else PIPED_WIDTH
    return Console(highlight=False, width=width, height=PIPED_HEIGHT)

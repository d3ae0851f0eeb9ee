"""What `turnmill` calls: Ctrl-C is one line from the first import on."""

import sys


def main() -> None:
    """Import the command line and run it; ends the process."""
    try:
        from turnmill.producer.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Stopped by Ctrl-C.\n")
        sys.exit(130)
    run()

"""`python -m turnmill.chaos.program worker`: the command line with the chaos engine in it."""

from turnmill.producer.cli.app import main
from turnmill.workers.engines.registry import ENGINES

ENGINES["chaos"] = "turnmill.chaos.engine:ChaosEngine"

if __name__ == "__main__":
    main()

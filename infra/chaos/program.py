"""`python -m turnmill.infra.chaos.program worker`: the command line with the chaos engine in it,
and a
wall clock that steps when it is told to.
"""

from importlib import import_module

from turnmill.infra.chaos.breaking.clock import step_through

#: An hour forward, back, an hour behind, and right again.
_STEPS_S = (0.0, 3600.0, 0.0, -3600.0)


def main() -> None:
    registry = import_module("turnmill.workers.engines.registry")
    registry.ENGINES["chaos"] = "turnmill.infra.chaos.breaking.engine:ChaosEngine"
    import_module("turnmill.producer.cli.app").main()


if __name__ == "__main__":
    step_through(_STEPS_S)
    main()

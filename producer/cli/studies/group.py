"""`turnmill studies` with all of its commands."""

from turnmill.producer.cli.studies import rate, results
from turnmill.producer.cli.studies.manage import app

rate.add_commands(app)
results.add_commands(app)

__all__ = ["app"]

"""`turnmill models` with all of its commands."""

from turnmill.producer.cli.compression import catalogue
from turnmill.producer.cli.compression.models import app

catalogue.add_commands(app)

__all__ = ["app"]

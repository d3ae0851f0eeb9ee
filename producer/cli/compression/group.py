"""`turnmill compress` with all of its commands."""

from turnmill.producer.cli.compression import auto, distill
from turnmill.producer.cli.compression.compress import app

auto.add_commands(app)
distill.add_commands(app)

__all__ = ["app"]

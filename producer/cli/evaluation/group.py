"""`turnmill evaluate` with all of its commands; words that name none of them are models."""

from typing import Any

import typer
from typer.core import TyperGroup

from turnmill.producer.cli.compression.evaluate import evaluate
from turnmill.producer.cli.evaluation import replay, replies

#: The command that `turnmill evaluate MODEL…` is short for.
_DEFAULT = "models"


class _DefaultGroup(TyperGroup):
    """Takes `turnmill evaluate MODEL…`, as it was before there were other things to evaluate."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DefaultGroup,
    help="How good models and replies are: `turnmill evaluate MODEL…` measures models.",
    no_args_is_help=True,
)
app.command(_DEFAULT)(evaluate)
replies.add_commands(app)
replay.add_commands(app)

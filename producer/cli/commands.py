"""The commands of `turnmill`, and where each is: nothing is imported before it is asked for."""

import signal
from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from turnmill.producer.cli.compression import disk
from turnmill.schemas.process.ending import describe_end, ended_by, ending_in_order, exit_status

_CLI = "turnmill.producer.cli"

#: Name → "module:function" of a command, or "module:app" of a group, below `turnmill.producer.cli`.
#: In the order of the help text.
COMMANDS = {
    "demo": "stack:demo",
    "up": "stack:up",
    "ask": "talk:ask",
    "chat": "talk:chat",
    "api": "processes:api",
    "relay": "processes:relay",
    "worker": "processes:worker",
    "deliver": "processes:deliver",
    "socket": "processes:socket",
    "flower": "processes:flower",
    "status": "operations.status:status",
    "doctor": "admin:doctor",
    "chaos": "chaos:chaos",
    "evaluate": "evaluation.group:app",
    "knowledge": "knowledge.group:app",
    "gaps": "knowledge.gaps:app",
    "users": "memory.group:app",
    "studies": "studies.group:app",
    "lanes": "operations.lanes:app",
    "workers": "operations.workers:app",
    "turns": "turns.listing:app",
    "parked": "turns.parked:app",
    "conversations": "channels.conversations:app",
    "ratings": "channels.ratings:app",
    "deliveries": "channels.deliveries:app",
    "batch": "batch:app",
    "bench": "bench:app",
    "compress": "compression.group:app",
    "models": "compression.models_group:app",
    "tenants": "admin:tenants",
    "keys": "admin:keys",
    "bots": "bots:app",
    "channels": "channels.configured:app",
    "db": "database:app",
}

#: Names of before → today's, of commands and of options without their dashes. They still work, and
#: no help text shows them.
RENAMED = {"turn": "turns", "error": "error-code", "out": "output", "because": "reason"}

#: They start processes, and stop them whichever signal ends the command.
STARTING = frozenset(("bench", "chaos", "demo", "up"))


def todays_name(name: str) -> str:
    """The name of today that a command or an option has."""
    return RENAMED.get(name, name)


class _Commands(Mapping[str, object]):
    """The commands by name, each imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = COMMANDS[name].partition(":")
        found = getattr(import_module(f"{_CLI}.{module}"), attribute)
        if isinstance(found, typer.Typer):
            command: Any = get_group(found)
        else:
            part = typer.Typer(add_completion=False, rich_markup_mode="rich")
            part.command()(found)
            command = get_command(part)
        command.name = name
        _unwrap(command)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _unwrap(command: TyperCommand | TyperGroup) -> None:
    """Make each paragraph of a help text one line, in a group's commands too.

    Typer prints the line breaks of docstrings as they are, and the terminal breaks lines again.
    """
    if command.help:
        paragraphs = cleandoc(command.help).split("\n\n")
        command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs)
    for inner in getattr(command, "commands", {}).values():
        _unwrap(inner)


class LazyGroup(TyperGroup):
    """`turnmill` itself: importing all that its commands need takes a second."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; from here on, one that starts processes ends in order."""
        if args[0] in STARTING:
            ctx.with_resource(ending_in_order())
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(describe_end(), err=True)
            raise typer.Exit(exit_status(ended_by() or signal.SIGINT)) from None
        except Exception as error:
            if ctx.invoked_subcommand in disk.COMMANDS and (told := disk.error_of(error)):
                raise told from error
            raise

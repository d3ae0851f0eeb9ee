"""The option `--json` of lists, and what it prints."""

from typing import Annotated

import typer
from pydantic import BaseModel

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(shown: BaseModel) -> None:
    """Print one JSON object, with all texts whole."""
    typer.echo(shown.model_dump_json(indent=2))

"""`turnmill compress auto`: recipes tried one after another, and the best artifact named."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turnmill.producer.cli.compression.compress import (
    DataOption,
    ModelArgument,
    ProseOption,
    checkpoint_of,
    name_of,
)
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.progress import showing_bars
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import load_settings

if TYPE_CHECKING:
    from turnmill.compression.recipe import Recipe
    from turnmill.compression.search import Found

console = make_console()

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def add_commands(app: typer.Typer) -> None:
    app.command()(auto)


def auto(
    model: ModelArgument,
    data: DataOption = None,
    prose: ProseOption = None,
    budget: Annotated[str, typer.Option(help="How long to try: 90s, 30m, 2h.")] = "30m",
    max_size: Annotated[
        str | None, typer.Option(help="Of the weights on disk: 120MB, 2GB. Default: any.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A TOML file or a name (repeatable). Default: all recipes of ours."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What artifacts' names begin with; the model when left out.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Also write one report of all artifacts into this folder."
        ),
    ] = None,
) -> None:
    """Try recipes, the cheapest first, and name the best artifact that is small enough.

    The best loses least (the worse of dialogue and prose) among those that no other beats in
    quality and size, and keeps its recipe's limits. All artifacts stay in the store. Run again, the
    same command continues.

    Example: turnmill compress auto my-model --recipe f16 --budget 30m --max-size 120MB
    --data chats.jsonl
    """
    from turnmill.compression.data import read_conversations, read_text
    from turnmill.compression.pipeline import Job
    from turnmill.compression.samples import PROSE
    from turnmill.compression.search import Bounds, search
    from turnmill.compression.store import ModelStore

    settings = load_settings()
    bounds = Bounds(
        _amount(budget, _SECONDS, "budget"),
        int(_amount(max_size, _BYTES, "max-size")) if max_size else None,
    )
    recipes = _recipes(recipe or [])
    if not data:
        raise InvalidInput("Give conversations to calibrate and measure on: --data chats.jsonl")
    if out:
        out.mkdir(parents=True, exist_ok=True)  # Before the search: it may not be possible.
    called = name_of(model, settings)
    with showing_bars(console) as bars:
        job = Job(
            name=name or re.sub(r"[^\w.-]+", "-", called.removesuffix(".gguf")).lower(),
            base=checkpoint_of(model, settings),
            base_name=called,
            recipe=recipes[0],
            conversations=read_conversations(data),
            prose=read_text(prose or PROSE),
            progress=bars,
        )
        found = search(job, recipes, ModelStore(settings.models_dir), bounds)
    _show(found, out)


def _recipes(names: list[str]) -> "list[Recipe]":
    from turnmill.compression.recipe import read_recipe
    from turnmill.compression.samples import find_recipe, recipe_names

    return [read_recipe(find_recipe(each)) for each in names or recipe_names()]


def _show(found: "Found", out: Path | None) -> None:
    from turnmill.compression.evaluate.page import quality_table, write_report

    if found.report:
        console.print(quality_table(found.report.rows), markup=False, soft_wrap=True)
        if out:
            console.print(f"Report: {write_report(found.report, out)[1]}", soft_wrap=True)
    for trial in found.trials:
        for said in [trial.reason] if trial.reason else trial.misses:
            console.print(f"{trial.recipe}: {trial.outcome}. {said}", markup=False, soft_wrap=True)
    if found.best is None:
        console.print(
            "No artifact is small enough and within its recipe's limits. Give more time or size, "
            "or recipes of your own with --recipe.",
            soft_wrap=True,
        )
        raise typer.Exit(1)
    console.print(
        f"Best: {found.best.artifact}. Serve it: turnmill models promote {found.best.artifact}",
        soft_wrap=True,
    )


def _amount(text: str, units: Mapping[str, float], option: str) -> float:
    """Read a number with a unit.

    Raises:
        InvalidInput: it has another unit, or is not above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in units or not float(match[1]):
        known = ", ".join(f"30{unit}" for unit in units if unit)
        raise InvalidInput(f"--{option} '{text}': expected an amount such as {known}.")
    return float(match[1]) * units[match[2]]

"""`turnmill models available|pull|remove`: well-known models of the Hugging Face hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import BaseModel
from rich.filesize import decimal
from rich.table import Table

from turnmill.producer.cli.lists.printing import JsonOption
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.cli.views.transfer import showing_transfer
from turnmill.schemas.errors import InvalidInput, NotFound
from turnmill.schemas.settings import DEFAULT_MODEL, load_settings

if TYPE_CHECKING:
    from turnmill.producer.cli.lists.models import ShownPulled
    from turnmill.workers.engines.catalogue import CatalogueModel, PullForm

console = make_console()


def add_commands(app: typer.Typer) -> None:
    """Give the group of commands for models those of the catalogue."""
    for command in (available, pull, remove):
        app.command()(command)


def available(
    as_json: JsonOption = False,
) -> None:
    """List well-known models that `turnmill models pull` fetches, and which fit this machine.

    Example: turnmill models available --json
    """
    rows = _rows(load_settings().models_dir)
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows], indent=2, ensure_ascii=False))
        return
    console.print(_table(rows))
    console.print(
        f"\nMemory is what openvino needs with 8-bit weights. The default, {DEFAULT_MODEL}, comes "
        "without a pull.\nGated models want an account's token (HF_TOKEN) for --form safetensors. "
        "Models that think write their reasoning first."
    )
    if command := suggestion():
        console.print("For this machine:", plain(command), soft_wrap=True)


def pull(
    name: Annotated[str, typer.Argument(help="A model of `turnmill models available`.")],
    form: Annotated[
        str,
        typer.Option(help="`gguf` for openvino, `safetensors` for transformers and vLLM."),
    ] = "gguf",
) -> None:
    """Download a model from the Hugging Face hub; run it again to resume.

    Each file is checked against the hub's checksum. HTTPS_PROXY names a proxy, HF_ENDPOINT a
    mirror, HF_TOKEN an account's token.

    Example: turnmill models pull qwen2.5-1.5b-instruct
    """
    from turnmill.workers.engines import hub
    from turnmill.workers.engines.hub_errors import endpoint

    model = find_or_refuse(name)
    chosen = _form(form)
    models_dir = load_settings().models_dir
    if hub.pulled_path(model, chosen, models_dir):
        console.print(f"{model.name} is on this machine already.")
    else:
        console.print(
            f"Fetching {model.repo(chosen)} (about {decimal(model.size(chosen))}, "
            f"{model.licence}) from {endpoint()} into {models_dir / hub.FOLDER / model.name}",
            soft_wrap=True,
        )
        with showing_transfer(console, model.name) as report:
            hub.pull(model, chosen, models_dir, report)
        console.print(f"{model.name} is complete, and its checksums are right.")
    engine = "" if chosen == "gguf" else "TURNMILL_ENGINE__NAME=transformers "
    console.print(f"Serve it: {engine}turnmill up --model {model.name}", soft_wrap=True)


def remove(
    name: Annotated[str, typer.Argument(help="A pulled model or an artifact.")],
    force: Annotated[
        bool, typer.Option("--force", help="Although a rollback would return to the artifact.")
    ] = False,
) -> None:
    """Delete a pulled model, or an artifact that is not promoted, from this machine.

    Example: turnmill models remove qwen2.5-1.5b-instruct
    """
    from turnmill.workers.engines.catalogue import find_model
    from turnmill.workers.engines.hub import remove_pulled

    models_dir = load_settings().models_dir
    model = find_model(name)
    size = remove_pulled(model, models_dir) if model else _remove_artifact(name, models_dir, force)
    console.print(plain(f"Removed {name}, {decimal(size)}."))


def find_or_refuse(name: str) -> "CatalogueModel":
    """Return the catalogue's model of this name.

    Raises:
        NotFound: there is none, with the names that there are.
    """
    from turnmill.workers.engines.catalogue import CATALOGUE, find_model

    if model := find_model(name):
        return model
    if name == DEFAULT_MODEL:
        raise InvalidInput(
            f"{DEFAULT_MODEL} is the default: the first worker fetches it by itself.", param="name"
        )
    names = ", ".join(each.name for each in CATALOGUE)
    raise NotFound(f"There is no '{name}' in the catalogue. It has: {names}.")


def suggestion() -> str | None:
    """Return the command that serves the largest suitable model of the catalogue, if one fits."""
    from turnmill.workers.engines.catalogue import machine_memory, recommend

    if (model := recommend(machine_memory())) is None:
        return None
    return f"turnmill models pull {model.name} && turnmill up --model {model.name}"


def pulled_models(models_dir: Path) -> list["ShownPulled"]:
    """Return the models of the catalogue that were pulled."""
    from turnmill.producer.cli.lists.models import ShownPulled

    return [
        ShownPulled(name=row.name, forms=row.pulled, licence=row.licence)
        for row in _rows(models_dir)
        if row.pulled
    ]


def pulled_table(models: list["ShownPulled"]) -> Table:
    """Return a table of the models that were pulled."""
    table = Listing("pulled", "forms", "licence")
    for each in models:
        table.add_row(each.name, ", ".join(each.forms), each.licence)
    return table


def _remove_artifact(name: str, models_dir: Path, force: bool) -> int:
    from turnmill.compression.store import ModelStore
    from turnmill.workers.engines.hub import folder_size

    store = ModelStore(models_dir)
    if name not in store.names():
        raise NotFound(f"There is no pulled model and no artifact '{name}'.")
    size = folder_size(store.path(name))
    store.remove(name, force=force)
    return size


def _form(text: str) -> "PullForm":
    if text == "gguf":
        return "gguf"
    if text == "safetensors":
        return "safetensors"
    raise InvalidInput("--form is gguf or safetensors.", param="form")


class Available(BaseModel):
    """A model of the catalogue, as `--json` shows it."""

    name: str
    billions: float
    size_bytes: int
    memory_bytes: int
    fits: bool
    licence: str
    languages: str
    engines: dict[str, str]
    good_for: str
    gguf: str
    checkpoint: str
    gated: bool
    thinks: bool
    pulled: list[Literal["gguf", "safetensors"]]


def _rows(models_dir: Path) -> list[Available]:
    from turnmill.workers.engines.catalogue import CATALOGUE, fits, machine_memory
    from turnmill.workers.engines.hub import pulled_path

    memory = machine_memory()
    forms: tuple[PullForm, ...] = ("gguf", "safetensors")
    return [
        Available(
            name=model.name,
            billions=model.billions,
            size_bytes=model.gguf_bytes,
            memory_bytes=model.memory_needed(),
            fits=fits(model.memory_needed(), memory),
            licence=model.licence,
            languages=model.languages,
            engines={"openvino": "gguf", "transformers": "safetensors", "vllm": "safetensors"},
            good_for=model.good_for,
            gguf=f"{model.gguf_repo}/{model.gguf_file}",
            checkpoint=model.checkpoint_repo,
            gated=model.is_gated,
            thinks=model.thinks,
            pulled=[form for form in forms if pulled_path(model, form, models_dir)],
        )
        for model in CATALOGUE
    ]


def _table(rows: list[Available]) -> Table:
    table = Listing("name", "", "size", "memory", "licence", "languages", "good for")
    for row in rows:
        state = "pulled" if row.pulled else "fits" if row.fits else "too large"
        marks = [word for word in ("gated", "thinks") if getattr(row, word)]
        table.add_row(
            row.name,
            state,
            decimal(row.size_bytes),
            decimal(row.memory_bytes),
            row.licence,
            row.languages,
            "; ".join([row.good_for, *marks]),
            style="dim" if state == "too large" else "",
        )
    return table

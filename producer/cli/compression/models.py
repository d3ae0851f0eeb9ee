"""`turnmill models`: the artifacts in the store, and which one workers serve."""

import getpass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from turnmill.producer.cli.compression.catalogue import pulled_models, pulled_table
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.settings import load_settings

if TYPE_CHECKING:
    from turnmill.compression.artifact import Manifest
    from turnmill.compression.store import ModelStore, Promotion
    from turnmill.producer.cli.lists.models import ShownArtifact

app = typer.Typer(help="Models on this machine, and those to pull.", no_args_is_help=True)
console = make_console()

NameArgument = Annotated[str, typer.Argument(help="An artifact's name, as `models list` shows it.")]


def open_store() -> "ModelStore":
    from turnmill.compression.store import ModelStore

    return ModelStore(load_settings().models_dir)


@app.command("list")
def show_list(
    history: Annotated[
        bool, typer.Option("--history", help="Every promotion and rollback instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts, a star at the promoted one, and the models that were pulled.

    Example: turnmill models list --history
    """
    from turnmill.producer.cli.lists.models import ModelHistory, ModelList

    store = open_store()
    if history and as_json:
        print_json(ModelHistory(history=list(store.history())))
        return
    if history:
        console.print(_history(store))
        return
    found = ModelList(artifacts=_artifacts(store), pulled=pulled_models(load_settings().models_dir))
    if as_json:
        print_json(found)
        return
    console.print(_artifacts_table(found.artifacts))
    if found.pulled:
        console.print(pulled_table(found.pulled))
    if held := sum(_size(each) for each in store.unfinished()):
        what = f"Interrupted runs hold {decimal(held)}: the same command resumes each. Delete what"
        console.print(plain(f"{what} you do not want in {store.runs}"), soft_wrap=True)


@app.command()
def show(
    name: NameArgument,
    as_json: JsonOption = False,
) -> None:
    """Show how an artifact was made and what was measured of it.

    Example: turnmill models show my-model-int8 --json
    """
    store = open_store()
    manifest = store.manifest(name)
    if as_json:
        print_json(manifest)
        return
    show_artifact(store, manifest)


@app.command()
def verify(name: NameArgument) -> None:
    """Check every file of an artifact or a pulled model against its checksums.

    Example: turnmill models verify my-model-int8
    """
    from turnmill.compression.artifact import verify as verify_artifact
    from turnmill.workers.engines.catalogue import find_model
    from turnmill.workers.engines.hub import verify_pulled

    if model := find_model(name):
        count = verify_pulled(model, load_settings().models_dir)
    else:
        count = len(verify_artifact(open_store().path(name)).files)
    console.print(plain(f"{name}: {count} files are as they were written."))


@app.command()
def promote(
    name: NameArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Although it misses limits; this is recorded.")
    ] = False,
) -> None:
    """Make workers serve this artifact from their next start.

    Workers whose TURNMILL_ENGINE__MODEL is `promoted` serve what is promoted.

    Example: turnmill models promote my-model-int8
    """
    promotion = open_store().promote(name, by=getpass.getuser(), force=force)
    _say(promotion, "is promoted")


@app.command()
def rollback() -> None:
    """Return to the artifact that was promoted before.

    Example: turnmill models rollback
    """
    _say(open_store().rollback(by=getpass.getuser()), "is promoted again")


def show_artifact(store: "ModelStore", manifest: "Manifest") -> None:
    """Print an artifact's manifest for people."""
    folder = store.path(manifest.name)
    table = Table(box=None, show_header=False)
    for key, value in _facts(folder, manifest).items():
        table.add_row(key, plain(value))
    console.print(table)
    for miss in manifest.unmet:
        console.print("[red]misses a limit[/]", plain(miss))
    if not manifest.unmet:
        console.print(plain(f"Serve it: turnmill models promote {manifest.name}"))


def _facts(folder: Path, manifest: "Manifest") -> dict[str, str]:
    return {
        "name": manifest.name,
        "made of": manifest.base.name,
        "steps": ", ".join(each.kind for each in manifest.steps),
        "weights": manifest.format,
        "size": decimal(_size(folder)),
        **measured(folder, manifest),
        "checksum": manifest.checksum,
        "folder": str(folder),
    }


def measured(folder: Path, manifest: "Manifest") -> dict[str, str]:
    """Return what the artifact's report says of it, beside the model that it was made of."""
    from turnmill.producer.cli.lists.models import MeasuredReport

    if manifest.report is None:
        return {"measured": "no"}
    try:
        row = MeasuredReport.model_validate(manifest.report).rows[-1]
    except ValueError:  # Of another evaluator, or another release.
        return {"measured": "yes"}
    found = {"measured": f"{row.size:.2f}× the size of the original's weights"}
    for name, domain in (("dialogue", row.dialogue), ("prose", row.prose)):
        found[name] = (
            f"{domain.ratio}× the original's perplexity, KL {domain.divergence}, "
            f"top-1 {domain.top_1}"
        )
    page = folder / "report" / "report.md"
    return found | ({"report": str(page)} if page.is_file() else {})


def _artifacts(store: "ModelStore") -> list["ShownArtifact"]:
    from turnmill.producer.cli.lists.models import ShownArtifact

    promoted = store.promoted()
    found = []
    for name in store.names():
        manifest, folder = store.manifest(name), store.path(name)
        artifact = ShownArtifact(
            name=name,
            is_promoted=promoted is not None and promoted.artifact == name,
            base=manifest.base.name,
            weights=manifest.format,
            size_bytes=_size(folder),
            misses=list(manifest.unmet),
            made_at=datetime.fromtimestamp(folder.stat().st_mtime).astimezone(),
        )
        found.append(artifact)
    return found


def _artifacts_table(artifacts: list["ShownArtifact"]) -> Table:
    table = Listing("name", "", "made of", "weights", "size", "limits", "made")
    for each in artifacts:
        table.add_row(
            each.name,
            "*" if each.is_promoted else "",
            plain(each.base),
            each.weights,
            decimal(each.size_bytes),
            f"misses {len(each.misses)}" if each.misses else "kept",
            each.made_at.isoformat(" ", "minutes"),
        )
    return table


def _history(store: "ModelStore") -> Table:
    table = Listing("when", "who", "what", "artifact", "forced past")
    for each in store.history():
        when = each.at.astimezone().isoformat(" ", "seconds")
        misses = " ".join(each.misses) if each.forced else ""
        table.add_row(when, plain(each.by), each.action, each.artifact, plain(misses))
    return table


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say(promotion: "Promotion", what: str) -> None:
    console.print(plain(f"{promotion.artifact} {what}."))
    for miss in promotion.misses:
        console.print("[yellow]forced[/]", plain(miss))
    console.print("Workers with TURNMILL_ENGINE__MODEL=promoted serve it from their next start.")

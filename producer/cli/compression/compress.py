"""`turnmill compress`: a model and conversations in, a smaller model and its measured cost out."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from turnmill.producer.cli.compression.models import show_artifact
from turnmill.producer.cli.context import open_system
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.progress import showing_bars
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import Settings, load_settings

if TYPE_CHECKING:
    from turnmill.compression.recipe import Recipe
    from turnmill.compression.texts import Conversation

console = make_console()


class _ModelFirst(TyperGroup):
    """`turnmill compress MODEL …` is short for `turnmill compress run MODEL …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ModelFirst,
    no_args_is_help=True,
    help="Make a model smaller: quantize, prune, distil, fine-tune, export, by recipe.",
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A checkpoint's folder, a .gguf file, an artifact's name, a Hugging Face id, or "
        "smollm2-135m-instruct."
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Conversations (.jsonl) or plain text (.txt, .md); repeatable."),
]
TenantDataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tenant-data",
        help="Answered conversations of a tenant that allows it, out of PostgreSQL; repeatable.",
    ),
]
ProseOption = Annotated[
    Path | None, typer.Option(help="Text that no step sees; a sample of ours when left out.")
]


@app.command()
def run(
    model: ModelArgument,
    recipe: Annotated[
        str | None, typer.Option(help="A TOML file, or the name of a recipe of ours, such as int8.")
    ] = None,
    data: DataOption = None,
    tenant_data: TenantDataOption = None,
    prose: ProseOption = None,
    step: Annotated[
        list[str] | None,
        typer.Option(help="In place of a recipe: kind:key=value,…; repeatable, in order."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="With --step: perplexity=1.05, size=0.6, …; repeatable."),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(help="With --step: length=256, calibration=48, …; repeatable."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With --step: another seed than 1, other random choices."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the artifact; model and recipe when left out.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Measure the artifact; needed for its limits.")
    ] = True,
) -> None:
    """Compress a model by a recipe and keep the artifact in the store of models.

    Run again after an interruption, the same command resumes. `turnmill models promote` then makes
    workers serve the artifact.

    Example: turnmill compress my-model --recipe int8 --data chats.jsonl

    Example: turnmill compress run my-model --step quantize:bits=8,method=rtn --limit size=0.9
    --data chats.jsonl --name by-flags --no-evaluate
    """
    from turnmill.compression.data import read_text
    from turnmill.compression.late import measure_late
    from turnmill.compression.pipeline import Job, compress, measured
    from turnmill.compression.samples import PROSE
    from turnmill.compression.store import ModelStore

    settings = load_settings()
    chosen = _recipe(recipe, step or [], limit or [], window or [], seed)
    conversations = conversations_from(data or [], tenant_data or [], settings)
    base_name = name_of(model, settings)
    with showing_bars(console) as bars:
        bars.note(f"preparing {base_name}")
        base = checkpoint_of(model, settings)
        job = Job(
            name=name or _artifact_name(base_name, chosen.name),
            base=base,
            base_name=base_name,
            recipe=chosen,
            conversations=conversations,
            prose=read_text(prose or PROSE),
            evaluator=measured if evaluate else None,
            progress=bars,
        )
        store = ModelStore(settings.models_dir)
        manifest = measure_late(job, store, compress(job, store))
    show_artifact(store, manifest)


def conversations_from(
    files: list[Path], tenants: list[str], settings: Settings
) -> "list[Conversation]":
    """Read the conversations of the options --data and --tenant-data.

    Raises:
        InvalidInput: there are none, a file is malformed, or a tenant does not allow it.
    """
    from turnmill.compression.conversations import tenant_conversations
    from turnmill.compression.data import read_conversations

    if not files and not tenants:
        raise InvalidInput(
            "Give conversations: --data chats.jsonl, or --tenant-data NAME", param="data"
        )
    found = read_conversations(files)
    if tenants:
        with open_system(settings) as system:
            for tenant in tenants:
                found += tenant_conversations(system.database, tenant)
    return found


def checkpoint_of(model: str, settings: Settings) -> Path:
    """Return the folder of the model as a transformers checkpoint, converted or fetched if needed.

    Raises:
        SettingsError: there is no such model, or the hub cannot be reached.
    """
    from turnmill.workers.engines.hub import fetch_repository
    from turnmill.workers.engines.models import prepare_model

    engine = settings.engine.model_copy(update={"model": model, "models_dir": settings.models_dir})
    path = Path(prepare_model(engine, "safetensors"))
    return path if path.is_dir() else fetch_repository(model)


def name_of(model: str, settings: Settings) -> str:
    """Return what a model is called: a folder by its name, though it is given as `.`, and the
    promoted artifact by its own.
    """
    from turnmill.compression.store import ModelStore
    from turnmill.workers.engines.models import PROMOTED

    path = Path(model).expanduser()
    if model == PROMOTED and not path.exists():
        return ModelStore(settings.models_dir).promoted_path().name
    return path.name if path.name not in ("", "..") else path.resolve().name


def _recipe(
    recipe: str | None, steps: list[str], limits: list[str], windows: list[str], seed: int | None
) -> "Recipe":
    from turnmill.compression.recipe import read_recipe, recipe_of_flags
    from turnmill.compression.samples import find_recipe

    if bool(recipe) == bool(steps):
        raise InvalidInput("Give either --recipe or --step.")
    if not recipe:
        return recipe_of_flags(steps, limits, windows, seed=1 if seed is None else seed)
    flags = {"--limit": limits, "--window": windows, "--seed": seed}
    if ignored := [flag for flag, value in flags.items() if value not in ([], None)]:
        raise InvalidInput(
            f"{' and '.join(ignored)} would be ignored: --recipe has limits, windows and seed of "
            "its own. Change them there, or give --step."
        )
    return read_recipe(find_recipe(recipe))


def _artifact_name(base_name: str, recipe_name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", f"{base_name.removesuffix('.gguf')}-{recipe_name}").lower()

"""`turnmill compress classifier`, `backlog` and `chats`: distillation beside the recipes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from turnmill.producer.cli.compression.compress import (
    DataOption,
    ModelArgument,
    TenantDataOption,
    checkpoint_of,
    conversations_from,
)
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.progress import showing_bars
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.json_lines import one_line
from turnmill.schemas.settings import load_settings

console = make_console()

Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]


def add_commands(app: typer.Typer) -> None:
    for command in (classifier, backlog, chats):
        app.command()(command)


def classifier(
    model: ModelArgument,
    data: Annotated[
        Path | None,
        typer.Option(help='JSONL with {"text": …, "label": …}; our sample of tickets if left out.'),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the student goes.")] = Path(
        "classifier"
    ),
    layers: Annotated[int, typer.Option(min=1, help="Layers of the student.")] = 6,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of teacher and student.")] = 60,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Weight of the labels.")] = 0.5,
    temperature: Annotated[
        float, typer.Option(min=0.1, help="Softens what the teacher says of every label.")
    ] = 2.0,
    divergence: Annotated[
        str, typer.Option(help="Of both opinions: forward, reverse or jensen-shannon.")
    ] = "forward",
    learning_rate: Annotated[float, typer.Option(help="The highest rate.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Another seed, other random choices.")] = 1,
) -> None:
    """Distil a small classifier of texts from a large one, by hard and soft labels.

    The teacher is a checkpoint that knows the labels, or a language model: it gets a head then, and
    is trained on the labels first. A fifth of the texts is held out to measure both.

    Example: turnmill compress classifier my-model --layers 1 --steps 2 -o intents
    """
    from turnmill.compression.distill.classifier import (
        SAMPLE,
        ClassifierOptions,
        distil_classifier,
        read_examples,
    )

    given = {
        "layers": layers,
        "steps": steps,
        "alpha": alpha,
        "temperature": temperature,
        "divergence": divergence,
        "learning_rate": learning_rate,
    }
    try:
        options = ClassifierOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise InvalidInput(f"--{name.replace('_', '-')}: {first['msg']}.", param=name) from error
    examples = read_examples(data or SAMPLE)
    base = checkpoint_of(model, load_settings())
    with showing_bars(console) as bars:
        told = distil_classifier(base, examples, output, options, seed=seed, progress=bars)
    table = Table("", "right, held out", "parameters", box=None)
    for who in ("teacher", "student"):
        table.add_row(who, f"{told[f'{who}_accuracy']:.1%}", f"{told[f'{who}_parameters']:,}")
    console.print(table)
    console.print(plain(f"AutoModelForSequenceClassification loads the student: {output}"))


def backlog(
    data: DataOption = None,
    tenant_data: TenantDataOption = None,
    output: Output = Path("backlog.jsonl"),
) -> None:
    """Write a backlog that asks a teacher for the replies of your training conversations.

    `turnmill batch run` answers it through any engine; `turnmill compress chats` makes training
    text of backlog and results. Conversations that recipes calibrate or measure on are left out.

    Example: turnmill compress backlog --data chats.jsonl -o backlog.jsonl
    """
    from turnmill.compression.distill.generated import backlog_of

    conversations = conversations_from(data or [], tenant_data or [], load_settings())
    _write(output, backlog_of(conversations))


def chats(
    asked: Annotated[Path, typer.Argument(help="The backlog, in JSONL.")],
    results: Annotated[Path, typer.Argument(help="The results of its batch, in JSONL.")],
    output: Output = Path("teacher-chats.jsonl"),
) -> None:
    """Make training text of a backlog and the teacher's replies to it.

    Example: turnmill compress chats backlog.jsonl backlog-results.jsonl -o teacher-chats.jsonl
    """
    from turnmill.compression.distill.generated import chats_of

    _write(output, chats_of(asked, results))


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    import json

    lines = [one_line(json.dumps(row, ensure_ascii=False)) for row in rows]
    if not lines:
        raise InvalidInput("There is nothing to write: no conversation, or no reply, is usable.")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    console.print(plain(f"{len(lines)} conversations in {path}"))

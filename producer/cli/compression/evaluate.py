"""`turnmill evaluate MODEL…`: models beside their original, on the same texts."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turnmill.producer.cli.compression.compress import DataOption, ProseOption, checkpoint_of
from turnmill.producer.cli.extras import needing
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.progress import showing_bars
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import Settings, load_settings

if TYPE_CHECKING:
    from turnmill.compression.evaluate.report import Report
    from turnmill.compression.texts import Texts

console = make_console()


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…",
            help="Checkpoints' folders, .gguf files, artifacts' names, or smollm2-135m-instruct.",
        ),
    ],
    data: DataOption = None,
    prose: ProseOption = None,
    against: Annotated[
        str | None,
        typer.Option(help="The original that the others are compared with. Default: the first."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder of the report. Default: evaluations/TIME."),
    ] = None,
    windows: Annotated[
        int, typer.Option(min=2, help="Windows of 256 tokens to score, of each text.")
    ] = 16,
    replies: Annotated[
        int, typer.Option(min=0, help="Conversations to reply to, for BLEU and ROUGE.")
    ] = 8,
    speed_rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of the speed measurement; 0 leaves it out.")
    ] = 2,
) -> None:
    """Measure what models cost and gain beside their original: perplexity, agreement, BLEU, ROUGE,
    size, speed, memory and time to load.

    Writes report.json, report.md and plots. Held-out conversations of --data are measured on:
    those that `turnmill compress` with the same --data neither calibrates nor trains on.

    `turnmill evaluate MODEL…` is short for it.

    Example: turnmill evaluate models my-model-f16 --against my-model
    --data chats.jsonl --output report
    """
    with needing("compression"):
        from turnmill.compression.evaluate.page import quality_table, speed_table, write_report
        from turnmill.compression.evaluate.report import Judge, Measures
    settings = load_settings()
    if out:
        out.mkdir(parents=True, exist_ok=True)  # Before the measuring: it may not be possible.
    names = [*([against] if against else []), *models]
    paths = [path_of(name, settings) for name in names]
    measures = Measures(replies=replies, speed_rounds=speed_rounds)
    with showing_bars(console) as bars:
        texts = _texts(paths[0], data or [], prose, windows)
        for note in texts.notes:
            bars.note(note)
        judge = Judge(paths[0], texts, measures, bars)
        rows = [judge.original_row()]
        rows += [judge.row(path, name) for path, name in zip(paths[1:], names[1:], strict=True)]
        report = judge.report(judge.with_speeds(rows, paths))
    folder = out or Path("evaluations") / time.strftime("%Y%m%d-%H%M%S")
    written = write_report(report, folder)
    console.print(quality_table(report.rows), markup=False, soft_wrap=True)
    if speed_rounds:
        console.print(speed_table(report.rows), markup=False, soft_wrap=True)
    _say(report)
    console.print(f"Report: {written[1]}", markup=False, soft_wrap=True)


def path_of(model: str, settings: Settings) -> Path:
    """Return the path to load: a .gguf file and an artifact as they are, others as checkpoints.

    Raises:
        SettingsError: there is no such model.
    """
    from turnmill.compression.store import ModelStore

    path = Path(model).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    store = ModelStore(settings.models_dir)
    return store.path(model) if model in store.names() else checkpoint_of(model, settings)


def _texts(original: Path, data: list[Path], prose: Path | None, windows: int) -> "Texts":
    """Cut the windows with the original's tokenizer: every model must read the same tokens."""
    from turnmill.compression.data import read_conversations, read_text
    from turnmill.compression.evaluate.loading import load_tokenizer
    from turnmill.compression.samples import PROSE
    from turnmill.compression.texts import Windows, make_texts

    if not data:
        raise InvalidInput("Give conversations to measure on: --data chats.jsonl", param="data")
    sizes = Windows.model_validate({"heldout": windows, "prose": windows})
    return make_texts(
        read_conversations(data), read_text(prose or PROSE), load_tokenizer(original), sizes
    )


def _say(report: "Report") -> None:
    for row in report.rows:
        for remark in row.remarks:
            console.print(f"{row.name}: {remark}", markup=False, soft_wrap=True)

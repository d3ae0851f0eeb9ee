"""The options that say how a backlog file is written, and which of its columns is what."""

from pathlib import Path
from typing import Annotated

import typer

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.records.base import Layout
from turnmill.schemas.records.columns import Columns, Template

_NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", r"\t": "\t", "bar": "|", "pipe": "|"}

DelimiterOption = Annotated[
    str | None,
    typer.Option("--delimiter", help="Between cells: a character or 'tab'; found if left out."),
]
EncodingOption = Annotated[
    str | None, typer.Option("--encoding", help="Such as cp1252, gb18030; found if left out.")
]
SheetOption = Annotated[
    str | None, typer.Option("--sheet", help="Of an .xlsx file; its first one if left out.")
]
HeaderOption = Annotated[
    int | None,
    typer.Option("--header", min=1, help="The line of the header, where others stand above it."),
]
IdOption = Annotated[str | None, typer.Option("--id", help="The column with the row's id.")]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="The column with what the user says.")
]
ConversationOption = Annotated[
    str | None, typer.Option("--conversation", help="The column that rows of one dialogue share.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help=r"A prompt of several columns: 'Re: {subject}\n{body}'."),
]
IgnoreOption = Annotated[
    list[str] | None, typer.Option("--ignore", help="A column to carry along unread. Repeatable.")
]
SchemaOption = Annotated[
    Path | None,
    typer.Option("--schema", help="A JSON Schema: every reply is held to it, and becomes columns."),
]
PreviewOption = Annotated[
    int | None,
    typer.Option("--preview", min=1, help="Show that many prompts and submit nothing."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results file if it exists.")
]
RawOption = Annotated[
    bool, typer.Option("--raw", help="Leave formulas alive in .csv and .xlsx, .csv without a BOM.")
]
DetailsOption = Annotated[
    bool, typer.Option("--details", help="All of a result's fields in .csv and .xlsx too.")
]


def layout_of(
    delimiter: str | None, encoding: str | None, sheet: str | None, header: int | None
) -> Layout:
    """Raises `InvalidInput` for a delimiter that is not one character."""
    if delimiter is not None:
        delimiter = _NAMES.get(delimiter.lower(), delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise InvalidInput(
                f"--delimiter {delimiter!r}: give one character, or one of {', '.join(_NAMES)}."
            )
    return Layout(delimiter, encoding, sheet, header)


def columns_of(
    id: str | None,
    prompt: str | None,
    conversation: str | None,
    template: str | None,
    ignore: list[str] | None,
) -> Columns:
    """Raises `InvalidInput` for a template without a column."""
    return Columns(
        id, prompt, conversation, Template(template) if template else None, tuple(ignore or ())
    )

"""`turnmill studies rate`: rate in the terminal what others rate in the browser."""

from typing import Annotated

import typer
from rich.panel import Panel

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.studies.manage import StudyName
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.studies.lookup import find_study
from turnmill.producer.studies.model import Item, Rater, Study
from turnmill.producer.studies.raters import ensure_rater
from turnmill.producer.studies.rating import next_item, standing, submit, undo
from turnmill.producer.studies.texts import TEXTS, Texts, choose_language
from turnmill.schemas.postgres.database import Database

console = make_console()

#: What a person types for a value.
_KEYS: dict[str, dict[str, int]] = {
    "likert": {str(value): value for value in range(1, 6)},
    "pairwise": {"l": -1, "<": -1, "t": 0, "=": 0, "r": 1, ">": 1},
}


class _Left(Exception):
    """The rater goes, or takes the last rating back."""


class _Undone(_Left):
    """The last rating is to be taken back."""


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `turnmill studies`."""
    app.command()(rate)


def rate(
    name: StudyName,
    rater: Annotated[str, typer.Argument(help="Your name in the study.")],
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    tenant: TenantOption = None,
) -> None:
    """Rate in the terminal: 1 to 5, or l, t, r for pairs; u takes the last one back, q ends.

    Example: turnmill studies rate november alice --lang zh
    """
    texts = TEXTS[choose_language(lang)]
    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        with system.database.cursor() as cursor:
            own = Rater(ensure_rater(cursor, study.study_id, rater), rater, study)
        _rate_all(system.database, own, texts)


def _rate_all(database: Database, rater: Rater, texts: Texts) -> None:
    while (item := next_item(database, rater)) is not None:
        now = standing(database, rater)
        console.rule(plain(texts.progress.format(done=now.done, total=now.total)))
        _show(item, texts)
        try:
            submit(database, rater, item.item_id, _ask_all(rater.study, texts))
        except _Undone:
            undo(database, rater)
        except _Left:
            return
    console.print(texts.finished)


def _show(item: Item, texts: Texts) -> None:
    names = {"user": texts.user, "assistant": texts.assistant, "tool": texts.tool}
    for message in item.prompt:
        name = names.get(message.role.value, texts.system)
        console.print(plain(f"{name}: {message.text}"), soft_wrap=True)
    titles = (texts.reply,) if item.right is None else (texts.left, texts.right)
    for title, text in zip(titles, (item.left, item.right), strict=False):
        console.print(Panel(plain(text or ""), title=title))


def _ask_all(study: Study, texts: Texts) -> dict[str, int]:
    """Ask for each dimension. Raises `_Left`."""
    keys = _KEYS[study.kind]
    values = {}
    for dimension in study.dimensions:
        scale = texts.scales[dimension]
        for value, anchor in enumerate(scale.anchors, start=1):
            if study.kind == "likert":
                console.print(plain(f"  {value}  {anchor}"), soft_wrap=True)
        question = scale.question if study.kind == "likert" else texts.which_is_better
        values[dimension] = _ask(f"{scale.name}: {question} [{' '.join(keys)}]", keys)
    return values


def _ask(question: str, keys: dict[str, int]) -> int:
    while True:
        console.print(plain(question), end=" ")
        try:
            typed = input().strip().lower()
        except EOFError:
            raise _Left from None
        if typed == "q":
            raise _Left
        if typed == "u":
            raise _Undone
        if typed in keys:
            return keys[typed]

"""`turnmill studies agreement|export|import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.studies.manage import StudyName
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.studies.lookup import find_study

if TYPE_CHECKING:
    from turnmill.producer.studies.results import Agreement, Finding

console = make_console()


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `turnmill studies`."""
    app.command()(agreement)
    app.command()(export)
    app.command("import")(read)


def agreement(name: StudyName, tenant: TenantOption = None) -> None:
    """Show what the ratings say, and how far the raters agree.

    Krippendorff's alpha is ordinal: below .667 do not rest a decision on the ratings.

    Example: turnmill studies agreement november
    """
    from turnmill.producer.studies.results import agreement_of, findings_of, read_ratings

    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        ratings = read_ratings(system.database, study)
    if not ratings:
        console.print("Nothing is rated yet.")
        return
    console.print(_findings(findings_of(study, ratings), is_pair=study.kind == "pairwise"))
    agreed = agreement_of(study, ratings)
    console.print(_agreement(agreed))
    for each in agreed:
        if each.items and each.alpha is None:
            console.print(
                plain(
                    f"{each.dimension}: all ratings of items with several raters are equal. Alpha "
                    "compares with chance and is not defined then."
                ),
                soft_wrap=True,
            )


def export(
    name: StudyName,
    file: Annotated[Path, typer.Argument(help="A .csv or .jsonl file that is not there yet.")],
    langfuse: Annotated[
        bool, typer.Option("--langfuse", help="As Langfuse's scores, in JSONL.")
    ] = False,
    tenant: TenantOption = None,
) -> None:
    """Write the ratings, one a row, each with who wrote what.

    Example: turnmill studies export november ratings.csv
    """
    from turnmill.producer.studies.files import write_ratings
    from turnmill.producer.studies.results import read_ratings

    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        ratings = read_ratings(system.database, study)
        write_ratings(file, study, ratings, as_scores=langfuse)
    console.print(plain(f"{len(ratings):,} ratings in {file}"), soft_wrap=True)


def read(
    name: StudyName,
    file: Annotated[Path, typer.Argument(help="item_id, rater, dimension and value a row.")],
    tenant: TenantOption = None,
) -> None:
    """Read ratings that were given elsewhere, in the columns of an export.

    Example: turnmill studies import november ratings.csv
    """
    from turnmill.producer.studies.files import import_ratings

    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        count = import_ratings(system.database, study, file)
    console.print(plain(f"{count:,} ratings of {file}"), soft_wrap=True)


def _findings(findings: list["Finding"], *, is_pair: bool) -> Table:
    value = "preferred (ties half)" if is_pair else "mean"
    table = Table("dimension", "of", "items", value, "95 %", box=None)
    for each in findings:
        interval = f"{each.figure.low:.2f} to {each.figure.high:.2f}"
        mean = f"{each.figure.value:.2f}"
        table.add_row(*map(plain, (each.dimension, each.source, str(each.items), mean, interval)))
    return table


def _agreement(agreed: list["Agreement"]) -> Table:
    head = ("dimension", "common items", "alpha", "95 %", "Cohen's kappa", "same again")
    table = Table(*head, box=None)
    for each in agreed:
        alpha, interval = "", ""
        if each.alpha:
            alpha = f"{each.alpha.value:.2f}"
            interval = f"{each.alpha.low:.2f} to {each.alpha.high:.2f}"
        pairs = ", ".join(
            f"{' & '.join(pair.raters)} " + ("–" if pair.kappa is None else f"{pair.kappa:.2f}")
            for pair in each.kappas
        )
        again = "" if each.same_again is None else f"{each.same_again:.0%} of {each.repeats}"
        cells = (each.dimension, str(each.items), alpha, interval, pairs, again)
        table.add_row(*map(plain, cells))
    return table

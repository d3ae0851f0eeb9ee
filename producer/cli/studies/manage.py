"""`turnmill studies create|list|show|invite|close|delete`."""

import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.lists.shapes import ShownStudy, StudyList
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.studies.creation import Plan, create_study
from turnmill.producer.studies.lookup import (
    close_study,
    count_study,
    delete_study,
    find_study,
    list_raters,
    list_studies,
)
from turnmill.producer.studies.model import Candidate, Kind, check_kind
from turnmill.producer.studies.raters import invite as invite_rater
from turnmill.schemas.errors import InvalidInput

app = typer.Typer(
    help="Studies: people rate replies without knowing who wrote them.", no_args_is_help=True
)
console = make_console()

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name.")]

#: Where the API listens, as its raters reach it.
_DEFAULT_URL = "http://localhost:8000"


@app.command()
def create(
    name: StudyName,
    file: Annotated[
        Path | None,
        typer.Option("--from", help="Columns: prompt and reply; for pairs prompt, a and b."),
    ] = None,
    bot: Annotated[str | None, typer.Option(help="Rate stored replies of this bot.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Stored turns to draw.")] = 100,
    days: Annotated[int, typer.Option(min=1, help="Of so many days until now.")] = 30,
    kind: Annotated[
        str, typer.Option(help="likert: 1 to 5; pairwise: which is better.")
    ] = "likert",
    dimension: Annotated[
        list[str] | None,
        typer.Option(help="fluency, coherence, informativeness; for pairs also preference."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order, the sides and the draw.")] = 0,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="The share that several people rate.")
    ] = 0.2,
    raters: Annotated[int, typer.Option(min=1, help="How many people rate those.")] = 3,
    repeats: Annotated[
        float, typer.Option(min=0, max=1, help="The share that a rater sees again.")
    ] = 0.1,
    tenant: TenantOption = None,
) -> None:
    """Create a study of the rows of a file, or of a bot's stored turns.

    Example: turnmill studies create november --bot support --turns 200

    Example: turnmill studies create a-or-b --from pairs.csv --kind pairwise
    """
    chosen = check_kind(kind)
    with open_system(tenant=tenant) as system:
        candidates = _candidates(system, chosen, file, bot, turns, days, seed)
        plan = Plan(seed, overlap, raters, repeats)
        study = create_study(
            system.database, system.tenant_id, name, chosen, candidates, dimension or (), plan
        )
        counts = count_study(system.database, study)
    console.print(
        plain(
            f"{counts.items} items ({counts.repeats} of them again), {counts.wanted} ratings to "
            f"give. Invite people: turnmill studies invite {shlex.quote(name)} RATER{system.suffix}"
        ),
        soft_wrap=True,
    )


@app.command("list")
def show_list(as_json: JsonOption = False, tenant: TenantOption = None) -> None:
    """List the studies.

    Example: turnmill studies list
    """
    with open_system(tenant=tenant) as system:
        studies = list_studies(system.database, system.tenant_id)
        found = [ShownStudy.of(study, count_study(system.database, study)) for study in studies]
    if as_json:
        print_json(StudyList(studies=found))
        return
    table = Listing("study", "kind", "dimensions", "items", "rated", "created", "")
    for each in found:
        rated = f"{each.done} of {each.wanted}"
        state = "closed" if each.closed_at else ""
        created = f"{each.created_at:%Y-%m-%d %H:%M}"
        cells = (each.name, each.kind, ", ".join(each.dimensions), str(each.item_count), rated)
        table.add_row(*map(plain, (*cells, created, state)))
    console.print(table if found else "There is no study yet.")


@app.command()
def show(name: StudyName, tenant: TenantOption = None) -> None:
    """Show how far a study and each of its raters are.

    Example: turnmill studies show november
    """
    table = Listing("rater", "rated", "median s", "last", "link until")
    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        counts = count_study(system.database, study)
        for each in list_raters(system.database, study):
            times = [f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (each.last_at, each.expires_at)]
            median = "" if each.median_s is None else f"{each.median_s:.0f}"
            table.add_row(*map(plain, (each.name, str(each.done), median, *times)))
    state = "closed" if study.closed_at else "open"
    console.print(
        plain(f"{study.name}: {study.kind}, {state}; {counts.done} of {counts.wanted} rated."),
        soft_wrap=True,
    )
    console.print(table if table.rows else "Nobody is invited yet.")


@app.command()
def invite(
    name: StudyName,
    rater: Annotated[str, typer.Argument(help="Who rates.")],
    days: Annotated[int, typer.Option(min=1, max=365, help="So long the link works.")] = 14,
    url: Annotated[
        str, typer.Option(help="The API's address, as the rater reaches it.")
    ] = _DEFAULT_URL,
    tenant: TenantOption = None,
) -> None:
    """Print a rater's link. Whoever has it can rate. A link of before stops working.

    Example: turnmill studies invite november alice --url https://bots.example.com
    """
    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        secret = invite_rater(system.database, study, rater, days)
    typer.echo(f"{url.rstrip('/')}/rate/{secret}")


@app.command()
def close(name: StudyName, tenant: TenantOption = None) -> None:
    """Show no further item to anybody. What was rated stays.

    Example: turnmill studies close november
    """
    with open_system(tenant=tenant) as system:
        close_study(system.database, find_study(system.database, system.tenant_id, name))
    console.print("Closed.")


@app.command()
def delete(
    name: StudyName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Delete a study with its texts, raters and ratings.

    Example: turnmill studies delete november
    """
    with open_system(tenant=tenant) as system:
        study = find_study(system.database, system.tenant_id, name)
        if not yes:
            typer.confirm(f"Delete {name} with all its ratings?", abort=True)
        delete_study(system.database, study)
    console.print("Deleted.")


def _candidates(
    system: System, kind: Kind, file: Path | None, bot: str | None, turns: int, days: int, seed: int
) -> list[Candidate]:
    from turnmill.producer.studies.candidates import read_candidates, stored_candidates

    if (file is None) == (bot is None):
        raise InvalidInput("Name what is rated: a file with --from, or a bot with --bot.")
    if file is not None:
        return read_candidates(file, kind)
    if kind == "pairwise":
        raise InvalidInput("Pairs come from a file: --from pairs.csv with prompt, a and b.")
    since = datetime.now(UTC) - timedelta(days=days)
    return stored_candidates(system.database, system.tenant_id, bot or "", turns, since, seed)

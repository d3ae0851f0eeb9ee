"""`turnmill gaps`: questions that collections did not answer, and the answers to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import typer

from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.knowledge.asking import asking
from turnmill.producer.cli.knowledge.embedding import embed_new
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.lists.shapes import GapList
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.knowledge.gaps.closing import answer_gap, dismiss_gaps
from turnmill.producer.knowledge.gaps.listing import Gap, list_groups, safety_of
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.store.knowledge.spaces import Asked

app = typer.Typer(help="Questions that your collections did not answer.", no_args_is_help=True)
console = make_console()

GapId = Annotated[str, typer.Argument(metavar="GAP", help="gap_… as `gaps list` shows it.")]

#: Characters of a question in a list.
_SHOWN = 200


@app.command("list")
def show_list(
    collection: Annotated[str | None, typer.Option(help="Only of this collection.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Groups shown.")] = 50,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List open gaps, near questions together; what was asked most often first.

    Example: turnmill gaps list --collection shop
    """
    with open_system(tenant=tenant) as system:
        groups = list_groups(system.database, system.tenant_id, collection)
    if as_json:
        print_json(GapList.of(groups, limit))
        return
    table = Listing("gap", "asked", "last", "collection", "verdict", "question")
    for each in groups[:limit]:
        first = each.first
        question = " ".join(first.question.split())[:_SHOWN]
        last = f"{first.created_at:%Y-%m-%d %H:%M}"
        cells = (show_id(Prefix.GAP, first.id), str(len(each.gaps)), last, first.collection)
        table.add_row(*map(plain, (*cells, first.verdict, question)))
    console.print(table if groups else "There are no open gaps.")
    if len(groups) > limit:
        console.print(f"{len(groups) - limit} more groups: --limit")


@app.command()
def answer(
    gap: GapId,
    text: Annotated[str, typer.Argument(help="What the bot is to know.")],
    question: Annotated[
        str | None,
        typer.Option(
            help="The question as the document is to have it, instead of the user's own words."
        ),
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Write an answer into the collection, and ask the gap and those near to it again.

    What passes the gate now is closed. The exit status is 1 if the gap's own question does not.

    Example: turnmill gaps answer gap_01a20a667dde743da35d0f8a02aa55e1 "Gift cards are of paper."
    """
    with open_system(tenant=tenant) as system:
        gap_id = parse_id(Prefix.GAP, gap)
        place = (system.database, system.tenant_id)
        as_turns = partial(_embedded, system)
        replayed = answer_gap(*place, gap_id, text, question, asking=as_turns)
    count = len(replayed.passed)
    console.print(
        plain(
            f"'{replayed.collection}' has the answer as {replayed.uri}. Asked again: {count} of "
            f"{count + len(replayed.missed)} questions pass."
        ),
        soft_wrap=True,
    )
    for each in replayed.missed:
        console.print(plain(f"Still open: {' '.join(each.question.split())[:_SHOWN]}"))
    if gap_id not in {each.id for each in replayed.passed}:
        console.print(
            plain(
                "The question itself does not pass: passages that are too much like the answer "
                "stand beside it. Answer again in more of its words."
            ),
            soft_wrap=True,
        )
        raise typer.Exit(1)


@contextmanager
def _embedded(system: System, collection: str) -> Iterator[Callable[[Gap], Asked | None]]:
    """Ask users' questions as turns do: a server reads no more of them."""
    from turnmill.workers.safety.sifting import for_server

    embed_new(system, collection)
    with asking(system, collection) as ask:

        def ask_gap(gap: Gap) -> Asked | None:
            def hide(question: str) -> str:
                safety = safety_of(system.database, system.tenant_id, gap)
                return for_server(safety, gap.turn_id, question)

            return ask(gap.question, hide)

        yield ask_gap


@app.command()
def dismiss(gap: GapId, tenant: TenantOption = None) -> None:
    """Close a gap, and those near to it, without an answer.

    Example: turnmill gaps dismiss gap_01a20a667dde743da35d0f8a02aa55e1
    """
    with open_system(tenant=tenant) as system:
        count = dismiss_gaps(system.database, system.tenant_id, parse_id(Prefix.GAP, gap))
    console.print(f"Dismissed {count}.")

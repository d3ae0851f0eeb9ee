"""`turnmill users`: what is remembered of the users of your bots."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.memory.erasing import add_commands, erase_user, show_erased
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.memory import extraction, users
from turnmill.producer.memory.users import check_key
from turnmill.schemas.ids import Prefix, show_id

app = typer.Typer(help="Users: what your bots remember of them.", no_args_is_help=True)
console = make_console()

UserKey = Annotated[
    str,
    typer.Argument(
        metavar="USER", help="Where the user comes from and the id there: api:4711, slack:U0ADA."
    ),
]


@app.command("list")
def show_list(
    after: Annotated[str, typer.Option(help="Users behind this one.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Users shown.")] = 100,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List the users of whom anything is kept.

    Example: turnmill users list
    """
    with open_system(tenant=tenant) as system:
        found = users.list_users(system.database, system.tenant_id, after=after, limit=limit + 1)
        suffix = system.suffix
    if as_json:
        from turnmill.producer.cli.lists.resources import UserPage

        print_json(UserPage.of(found, limit))
        return
    page = found[:limit]
    table = Listing("user", "memory", "facts", "preferences", "consent")
    for each in page:
        counts = (str(each.fact_count), str(len(each.preferences)))
        consent = f"{each.consent_at:%Y-%m-%d %H:%M}" if each.consent_at else "–"
        table.add_row(*map(plain, (each.key, _memory(each.memory_on), *counts, consent)))
    console.print(table if page else "Nothing is remembered of anybody yet.")
    if len(found) > limit:
        more = f"More: turnmill users list --after '{page[-1].key}'{suffix}"
        console.print(plain(more), soft_wrap=True)


@app.command()
def show(user: UserKey, tenant: TenantOption = None) -> None:
    """Show what is remembered of a user, and where it comes from.

    Example: turnmill users show api:4711
    """
    table = Listing("fact", "value", "source", "turn", "since")
    with open_system(tenant=tenant) as system:
        found = users.read_user(system.database, system.tenant_id, user)
        facts = users.list_facts(system.database, system.tenant_id, user)
    consent = f", agreed {found.consent_at:%Y-%m-%d %H:%M}" if found.consent_at else ""
    console.print(plain(f"{found.key}: memory {_memory(found.memory_on)}{consent}"))
    for name, value in sorted(found.preferences.items()):
        console.print(plain(f"prefers {name}: {value}"))
    for each in facts:
        turn = "–" if each.turn_id is None else show_id(Prefix.TURN, each.turn_id)
        cells = (each.key, each.value, each.source, turn, f"{each.created_at:%Y-%m-%d %H:%M}")
        table.add_row(*map(plain, cells))
    console.print(table if facts else "No facts are remembered.")


@app.command()
def remember(
    user: UserKey,
    fact: Annotated[str, typer.Argument(help="Its name.")],
    value: Annotated[str, typer.Argument(help="What is remembered.")],
    tenant: TenantOption = None,
) -> None:
    """Remember a fact of a user. Turns are told it once the user's memory is on.

    Example: turnmill users remember api:4711 "shoe size" 43
    """
    with open_system(tenant=tenant) as system:
        users.remember(system.database, system.tenant_id, user, fact, value)
    console.print(plain(f"Remembered of {user}: {fact}."))


@app.command()
def propose(
    every: Annotated[
        float | None, typer.Option(min=1, help="Do it again after so many seconds, until Ctrl-C.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Propose facts out of conversations that are idle, for bots whose policy names a reader.

    One round lets another bot read what users who agreed said, on the batch lane, and takes what
    earlier rounds have come to. Run it from time to time. It names the bots whose conversations
    cannot be read, and ends with the exit code 1 then.

    Example: turnmill users propose
    """
    while True:
        with open_system(tenant=tenant) as system:
            found = extraction.propose(system.database, system.tenant_id, datetime.now(UTC))
        console.print(
            plain(
                f"{found.reading} conversations are being read; {found.proposed} facts proposed, "
                f"{found.confirmed} remembered by their names."
            )
        )
        for problem in found.problems:
            console.print(plain(problem), style="yellow", soft_wrap=True)
        if every is None:
            raise typer.Exit(1 if found.problems else 0)
        time.sleep(every)


@app.command()
def confirm(
    user: UserKey,
    fact: Annotated[str, typer.Argument(help="Its name.")],
    is_right: Annotated[bool, typer.Option("--yes/--no", help="Whether it is right.")] = True,
    tenant: TenantOption = None,
) -> None:
    """Confirm a proposed fact of a user, or delete the proposal.

    Example: turnmill users confirm api:4711 city
    """
    with open_system(tenant=tenant) as system:
        users.answer_proposal(system.database, system.tenant_id, user, fact, is_right=is_right)
    console.print(plain(f"{'Remembered' if is_right else 'Dropped'} of {user}: {fact}."))


@app.command("set")
def change(
    user: UserKey,
    memory: Annotated[
        bool | None,
        typer.Option("--memory/--no-memory", help="Whether the user agrees to be remembered."),
    ] = None,
    preference: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A preference (repeatable); they replace all."),
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Record a user's consent, or replace the user's preferences.

    Example: turnmill users set api:4711 --memory --preference language=Deutsch
    """
    with open_system(tenant=tenant) as system:
        if memory is not None:
            users.set_memory(system.database, system.tenant_id, user, is_on=memory)
        if preference is not None:
            pairs = (each.partition("=") for each in preference)
            chosen = {name.strip(): value for name, _, value in pairs}
            users.set_preferences(system.database, system.tenant_id, user, chosen)
    console.print(plain(f"Changed {user}."))


@app.command()
def forget(
    user: UserKey,
    fact: Annotated[
        str | None, typer.Argument(help="The fact to forget; the whole user without one.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Forget a fact of a user; or the whole user, with all that the user ever said.

    The user's open turns are cancelled. What the user said, and all replies since, are erased
    wherever they stand; ids, counts and usage stay. It cannot be taken back.

    Example: turnmill users forget api:4711 "shoe size"

    Example: turnmill users forget api:4711 --yes
    """
    with open_system(tenant=tenant) as system:
        if fact is not None:
            users.forget_fact(system.database, system.tenant_id, user, fact)
            console.print(plain(f"Forgotten of {user}: {fact}."))
            return
        check_key(user)
        if not yes:
            typer.confirm(f"Erase all that {user} ever said?", abort=True)
        erased = erase_user(system, user)
        show_erased(system.database, [erased])


@app.command()
def export(user: UserKey, tenant: TenantOption = None) -> None:
    """Write all that is remembered of a user as JSON.

    Example: turnmill users export api:4711 > ada.json
    """
    with open_system(tenant=tenant) as system:
        found = users.export(system.database, system.tenant_id, user)
    json.dump(found, sys.stdout, ensure_ascii=False, indent=2, default=str)
    sys.stdout.write("\n")


def _memory(is_on: bool | None) -> str:
    return {None: "undecided", True: "on", False: "off"}[is_on]


add_commands(app)

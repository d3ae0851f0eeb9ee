"""`turnmill users forget USER`, `erasures` and `reapply`: forget users for good."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from turnmill.producer.cli.context import System, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.lists.shapes import ErasureList
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.memory.forgetting import forget_user
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.files.opening import open_storage
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.files.undeleted import retry_now
from turnmill.schemas.store.memory.erasures import Erasure, list_erasures, list_undeleted
from turnmill.schemas.store.memory.ledger import merge_ledger
from turnmill.workers.upkeep.erasures import Erased, erase, erase_all

console = make_console()

#: So long a command waits for what is being answered or sent, seconds.
WAIT_S = 30.0


def add_commands(app: typer.Typer) -> None:
    for command in (reapply, erasures):
        app.command()(command)


def erase_user(system: System, user: str) -> Erased:
    """Forget a user, and wait a while for what others are promised in the user's conversations."""
    erasure = forget_user(system.database, system.tenant_id, user)
    merge_ledger(system.database, system.settings.ledger_path)
    storage = open_storage(system.settings)
    counts: Counter[str] = Counter()
    while True:
        erased = erase(system.database, storage, erasure)
        counts += erased.counts
        if not erased.waiting or not _may_wait(erasure):
            return erased._replace(counts=counts)
        time.sleep(1.0)


def reapply(
    ledger: Annotated[
        Path | None,
        typer.Argument(help="A list of forgotten users; that of the data folder when left out."),
    ] = None,
) -> None:
    """Forget again who was forgotten before, after a restore of an older backup.

    Workers do the same when they start. Files whose deletion failed are tried again at once.

    Example: turnmill users reapply
    """
    with open_system() as system:
        path = ledger or system.settings.ledger_path
        if ledger is not None and not ledger.is_file():
            raise InvalidInput(f"There is no file '{ledger}'.", param="ledger")
        merged = merge_ledger(system.database, path)
        retry_now(system.database)
        erased = erase_all(system.database, open_storage(system.settings))
        console.print(plain(f"{path}: {merged.to_database} erasures were new to the database."))
        show_erased(system.database, erased)


def erasures(as_json: JsonOption = False) -> None:
    """List the erasures of all tenants: by a hash, for who was forgotten is not kept.

    Example: turnmill users erasures
    """
    with open_system() as system:
        found = list_erasures(system.database)
    if as_json:
        print_json(ErasureList.of(found))
        return
    table = Listing("user (hash)", "asked", "done")
    for each in found:
        done = f"{each.done_at:%Y-%m-%d %H:%M}" if each.done_at else "not yet"
        table.add_row(each.key_hash.hex()[:12], f"{each.at:%Y-%m-%d %H:%M}", done)
    console.print(table if found else "Nobody was forgotten yet.")


def show_erased(database: Database, erased: Sequence[Erased]) -> None:
    """Say what was erased, table by table, and what is still waited for."""
    counts = sum((each.counts for each in erased), Counter[str]())
    for name, count in sorted(counts.items()):
        console.print(plain(f"{name:<20} {count:>7}"))
    if waiting := sum(each.waiting for each in erased):
        console.print(
            plain(
                f"{waiting} conversations wait: something in them is still being answered or sent. "
                "A worker erases them afterwards, within the hour; see 'turnmill users erasures'."
            ),
            soft_wrap=True,
        )
        return
    if undeleted := list_undeleted(database, [each.erasure for each in erased]):
        for row in undeleted:
            reason = row.reason.rstrip(".")
            console.print(plain(f"{row.files} files cannot be deleted: {reason}."), soft_wrap=True)
        console.print("All else is erased. Workers try these files again.")
        return
    console.print("All is erased." if erased else "There is nothing to erase.")


def _may_wait(erasure: Erasure) -> bool:
    return (datetime.now(UTC) - erasure.at).total_seconds() < WAIT_S

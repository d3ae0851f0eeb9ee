"""`turnmill knowledge`: what bots are shown of your documents."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.knowledge.asking import asking
from turnmill.producer.cli.knowledge.calibrating import (
    calibrate,
    gate_cells,
    recalibrate,
    show_gate,
)
from turnmill.producer.cli.knowledge.embedding import embed, embed_new
from turnmill.producer.cli.knowledge.evaluating import evaluate
from turnmill.producer.cli.knowledge.waiting import waited
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.lists.shapes import CollectionList, DocumentPage, ShownCollection
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.knowledge.lookup import (
    delete_collection,
    find_collection,
    list_collections,
    list_documents,
)
from turnmill.producer.knowledge.sync import Change, Synced, delete_documents
from turnmill.producer.knowledge.sync import sync as sync_source
from turnmill.schemas.errors import NotFound
from turnmill.schemas.store.knowledge.features import DEPTH
from turnmill.schemas.store.knowledge.gate import Zone, judge
from turnmill.schemas.store.knowledge.indexing import retry as retry_documents
from turnmill.schemas.store.knowledge.search import search as search_passages

app = typer.Typer(help="Knowledge: what bots are shown of your documents.", no_args_is_help=True)
app.command()(calibrate)
app.command()(embed)
app.command()(evaluate)
console = make_console()

_ZONES = {
    Zone.KNOWN: "This answers the question",
    Zone.UNSURE: "This is near the question, and may not answer it",
    Zone.UNKNOWN: "This does not answer the question",
}

CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="Its name.")]


@app.command()
def sync(
    collection: CollectionName,
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder or a file: Markdown, HTML, text, PDF, Word; CSV, XLSX or JSONL with the "
            "columns question and answer."
        ),
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until workers have read the documents.")
    ] = True,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Where people find the documents: each one's path is joined to it. A page's "
            "<link rel=canonical> and a table's column url count for more.",
            metavar="URL",
        ),
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Bring a collection to what a folder or a file holds now: add, change, delete.

    Workers read the documents; their passages change when they are read. What came from other
    folders stays. A file that cannot be read keeps what is known of it, and the exit status is 1.

    Example: turnmill knowledge sync shop docs/shop

    Example: turnmill knowledge sync shop faq.csv

    Example: turnmill knowledge sync shop docs/shop --base-url https://help.example.com/
    """
    with open_system(tenant=tenant) as system:
        synced = list(sync_source(system.database, system.tenant_id, collection, source, base_url))
        if wait:
            synced = list(waited(console, system.database, synced))
        counts = Counter(each.change for each in synced)
        total = ", ".join(f"{counts[change]} {change}" for change in Change if counts[change])
        console.print(plain(f"{collection}: {total or 'no documents'}."))
        if wait:
            embed_new(system, collection)
            recalibrate(system, collection)
        suffix = system.suffix
    if not wait:
        console.print(plain(f"Workers read them: turnmill knowledge show {collection}{suffix}"))
    console.print(
        plain(f"A bot reads it: turnmill bots save BOT --policy knowledge={collection}{suffix}"),
        soft_wrap=True,
    )
    if counts[Change.UNREADABLE]:
        raise typer.Exit(1)


@app.command()
def search(
    collection: CollectionName,
    question: Annotated[str, typer.Argument(help="As a user would ask.")],
    limit: Annotated[int, typer.Option(min=1, max=50, help="Passages shown.")] = 5,
    tenant: TenantOption = None,
) -> None:
    """Show the passages that are likeliest to answer a question.

    Example: turnmill knowledge search shop "How do I return a kettle?"
    """
    titles = ("score", "words", "cosine", "document", "passage")
    table = Listing(*titles)
    with open_system(tenant=tenant) as system:
        known = find_collection(system.database, system.tenant_id, collection)
        most = max(limit, DEPTH)
        with asking(system, collection) as ask:
            asked = ask(question)
        found = search_passages(
            system.database, system.tenant_id, collection, question, most, asked
        )
    for each in found[:limit]:
        place = " › ".join(filter(None, (each.uri, each.heading)))
        text = " ".join(each.content.split())
        cosine = "-" if each.cosine is None else f"{each.cosine:.2f}"
        cells = (f"{each.score:.2f}", f"{each.coverage:.0%}", cosine, place, text[:200])
        table.add_row(*map(plain, cells))
    console.print(table if found else "No passage has any of these words.")
    zone, probability = judge(known.gate, question, found)
    by = "by a rule of thumb" if probability is None else f"with a probability of {probability:.2f}"
    console.print(plain(f"{_ZONES[zone]} ({by})."))


@app.command("list")
def show_list(as_json: JsonOption = False, tenant: TenantOption = None) -> None:
    """List the collections.

    Example: turnmill knowledge list
    """
    with open_system(tenant=tenant) as system:
        found = list_collections(system.database, system.tenant_id)
    if as_json:
        print_json(CollectionList(collections=[ShownCollection.of(each) for each in found]))
        return
    table = Listing("collection", "documents", "passages", "precision", "coverage", "gate")
    for each in found:
        counts = (str(each.document_count), str(each.passage_count))
        table.add_row(*map(plain, (each.name, *counts, *gate_cells(each))))
    console.print(
        table if found else "There is no collection yet: turnmill knowledge sync NAME FOLDER"
    )


@app.command()
def show(
    collection: CollectionName,
    after: Annotated[str, typer.Option(help="Documents behind this one.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Documents shown.")] = 100,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List the documents of a collection with their states and errors, and how it tells that it
    does not know.

    Example: turnmill knowledge show shop
    """
    with open_system(tenant=tenant) as system:
        found = find_collection(system.database, system.tenant_id, collection)
        documents = list_documents(
            system.database, found.collection_id, after=after, limit=limit + 1
        )
    if as_json:
        print_json(DocumentPage.of(found, documents, limit))
        return
    page = documents[:limit]
    table = Listing("document", "title", "passages", "version", "updated", "state", "address")
    for each in page:
        counts = (str(each.passage_count), str(each.version))
        updated = f"{each.updated_at:%Y-%m-%d %H:%M}"
        cells = (each.uri, each.title, *counts, updated, each.state, each.url or "")
        table.add_row(*map(plain, cells))
    console.print(table if page else "It has no documents.")
    for each in page:
        if each.error_message:
            console.print(plain(f"{each.uri}: {each.error_message}"), soft_wrap=True)
    if found.gate is not None:
        show_gate(collection, found.gate)
    else:
        console.print("It is not calibrated.")
    if len(documents) > limit:
        console.print(plain(f"More: turnmill knowledge show {collection} --after '{page[-1].uri}'"))


@app.command()
def retry(
    collection: CollectionName,
    document: Annotated[
        list[str] | None, typer.Argument(help="Documents; all that failed without any.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Let workers read documents again that failed, and wait for them.

    Example: turnmill knowledge retry shop

    Example: turnmill knowledge retry shop manual.pdf
    """
    with open_system(tenant=tenant) as system:
        found = find_collection(system.database, system.tenant_id, collection)
        queued = [
            Synced(row.uri, Change.CHANGED, document_id=row.id)
            for row in retry_documents(system.database, found.collection_id, document)
        ]
        if document and not queued:
            raise NotFound(f"'{collection}' has no such document that failed.", param="document")
        ended = list(waited(console, system.database, queued))
    failed = sum(each.change is Change.UNREADABLE for each in ended)
    console.print(plain(f"{collection}: {len(ended) - failed} read, {failed} failed."))
    if failed:
        raise typer.Exit(1)


@app.command()
def delete(
    collection: CollectionName,
    document: Annotated[
        list[str] | None, typer.Argument(help="Documents; the whole collection without any.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    tenant: TenantOption = None,
) -> None:
    """Delete documents, or a whole collection. The next turn cannot be shown them any more.

    Example: turnmill knowledge delete shop returns.md
    """
    with open_system(tenant=tenant) as system:
        found = find_collection(system.database, system.tenant_id, collection)
        if document:
            count = delete_documents(system.database, found.collection_id, document)
            if count == 0:
                raise NotFound(f"'{collection}' has no such document.", param="document")
            console.print(plain(f"Deleted {count}."))
            return
        if not yes:
            question = f"Delete '{collection}' with {found.document_count} documents?"
            typer.confirm(question, abort=True)
        delete_collection(system.database, found.collection_id)
    console.print(plain(f"Deleted '{collection}'."))

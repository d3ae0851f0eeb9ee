"""Close gaps: by an answer that the collection then has, or without one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from uuid import UUID

from turnmill.producer.knowledge.gaps.listing import Gap, near_gaps, read_gap
from turnmill.producer.knowledge.sync import save_answer
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.features import DEPTH
from turnmill.schemas.store.knowledge.gate import Zone, judge, read_gate, shown
from turnmill.schemas.store.knowledge.search import search
from turnmill.schemas.store.knowledge.spaces import Asked

MAX_ANSWER_CHARS = 4000

#: Turns a gap's question into its vector; None: it is searched for by words alone.
Ask = Callable[[Gap], Asked | None]
#: Makes a collection's missing vectors, and gives what asks it.
Asking = Callable[[str], AbstractContextManager[Ask]]

_CLOSE = """
UPDATE knowledge_gaps SET closed_at = clock_timestamp(), document_id = %(document)s
WHERE tenant_id = %(tenant)s AND id = ANY(%(gaps)s) AND closed_at IS NULL
RETURNING id
"""


def by_words(collection: str) -> AbstractContextManager[Ask]:
    return nullcontext(lambda gap: None)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the questions once the collection had an answer."""

    #: The document that the answer is.
    uri: str
    collection: str
    #: Those that the gate lets pass now, with the answer among the passages shown.
    passed: tuple[Gap, ...]
    missed: tuple[Gap, ...]


def answer_gap(
    database: Database,
    tenant_id: UUID,
    gap_id: UUID,
    text: str,
    question: str | None = None,
    *,
    asking: Asking = by_words,
) -> Replayed:
    """Write the answer into the collection as a question with its answer, and ask all near open
    gaps again. Those that pass are closed. Another answer to the same gap takes its place.

    `question`: as the document has it. A user's own words, which it has when this is left out, stay
    in the document when the user is forgotten. `asking`: as turns ask the collection.

    Raises:
        NotFound: there is no such gap.
        InvalidInput: the answer or the question is empty or too long.
    """
    for name, given in (("text", text), ("question", question)):
        if given is not None and not 1 <= len(given.strip()) <= MAX_ANSWER_CHARS:
            limit = f"has 1 to {MAX_ANSWER_CHARS} characters"
            raise InvalidInput(f"What is given as '{name}' {limit}.", param=name)
    gap = read_gap(database, tenant_id, gap_id)
    uri = show_id(Prefix.GAP, gap.id)
    document_id = save_answer(
        database, gap.collection_id, uri, question or gap.question, text.strip()
    )
    gaps = near_gaps(database, tenant_id, gap)
    with asking(gap.collection) as ask:
        passed = [each for each in gaps if passes(database, tenant_id, each, document_id, ask)]
    _close(database, tenant_id, passed, document_id)
    missed = tuple(each for each in gaps if each not in passed)
    return Replayed(uri, gap.collection, tuple(passed), missed)


def dismiss_gaps(database: Database, tenant_id: UUID, gap_id: UUID) -> int:
    """Close a gap and all near open ones without an answer; return how many.

    Raises:
        NotFound: there is no such gap.
    """
    gaps = near_gaps(database, tenant_id, read_gap(database, tenant_id, gap_id))
    return _close(database, tenant_id, gaps, None)


def passes(database: Database, tenant_id: UUID, gap: Gap, document_id: UUID, ask: Ask) -> bool:
    """Whether the question passes the gate, and its turn would be shown this document."""
    found = search(database, tenant_id, gap.collection, gap.question, DEPTH, ask(gap))
    _, gate = read_gate(database, tenant_id, gap.collection)
    is_shown = any(each.document_id == document_id for each in shown(found, passed=True))
    return is_shown and judge(gate, gap.question, found).zone is Zone.KNOWN


def _close(
    database: Database, tenant_id: UUID, gaps: Sequence[Gap], document_id: UUID | None
) -> int:
    params = {"tenant": tenant_id, "gaps": [gap.id for gap in gaps], "document": document_id}
    return len(database.run(_CLOSE, params))

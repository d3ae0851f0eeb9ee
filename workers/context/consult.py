"""Ask a bot's collection: the passages that a turn is shown, or what the bot does without them.

A later attempt continues the text of an earlier one. With other passages it would continue an
answer whose sources it does not have. So the first attempt commits what it found, and what the
gate said of it, before a reply begins.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from uuid import UUID

import structlog
from psycopg.types.json import Jsonb

from turnmill.schemas.channels.unknown import UnknownPolicy
from turnmill.schemas.citations.sources import Source
from turnmill.schemas.embedders.embedders import Embedders
from turnmill.schemas.ids import new_id
from turnmill.schemas.outcomes import Answered
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.features import DEPTH
from turnmill.schemas.store.knowledge.gate import Judged, Zone, judge, near, read_gate, shown
from turnmill.schemas.store.knowledge.lexemes import lexemes
from turnmill.schemas.store.knowledge.search import Passage, search
from turnmill.schemas.store.knowledge.spaces import Asked
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.turns import Message, Reply, Role, Usage
from turnmill.workers.consumer.metrics import VERDICTS
from turnmill.workers.context.ladder import (
    MAX_QUESTION_CHARS,
    Missed,
    last_missed,
    next_verdicts,
    own_words,
    read_policy,
    resolved,
    said,
)
from turnmill.workers.safety.sifting import for_server, sift_pages
from turnmill.workers.search.searches import Searches
from turnmill.workers.turn.claim import Claim

log = structlog.get_logger()

#: Words of a message that may ask nothing: "thanks", "good morning", 你好.
MAX_CHAT_WORDS = 2

_READ = "SELECT sources, verdict, shown FROM turn_sources WHERE turn_id = %s"

#: Only the attempt that runs may pin, and only where nothing is pinned yet. A question that was
#: missed is a gap of its collection.
_PIN = """
WITH turn AS (
    SELECT id, tenant_id, batch_id FROM turns
    WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND state = 'running'
    FOR SHARE
), pinned AS (
    INSERT INTO turn_sources (turn_id, sources, verdict, probability)
    SELECT id, %(sources)s, %(verdict)s, %(probability)s FROM turn
    ON CONFLICT (turn_id) DO NOTHING RETURNING turn_id
), gap AS (
    INSERT INTO knowledge_gaps (id, tenant_id, collection_id, turn_id, question, verdict)
    SELECT %(gap)s, turn.tenant_id, c.id, turn.id, %(question)s, %(verdict)s
    FROM turn JOIN pinned ON pinned.turn_id = turn.id JOIN collections c ON c.id = %(collection)s
    WHERE %(is_missed)s AND NOT EXISTS (
        -- No user asks there: stored turns are answered once more.
        SELECT FROM batches b WHERE b.id = turn.batch_id AND b.purpose IS NOT NULL)
    ON CONFLICT (turn_id) DO NOTHING
)
SELECT turn_id FROM pinned
"""


@dataclass(frozen=True, slots=True)
class Consulted:
    """What a collection was asked, and what came of it."""

    #: The passages that were found near, or pages of the web; the model is shown them, or the user
    #: their titles.
    sources: tuple[Source, ...] = ()
    #: None: the bot has no collection, or an older release asked it.
    verdict: Verdict | None = None


class _PinnedRow(NamedTuple):
    #: `Source`s as JSON.
    sources: list[object]
    verdict: str | None
    #: How many of them an earlier attempt's prompt had.
    shown: int | None


class _Found(NamedTuple):
    """What a search found, before it is pinned."""

    collection_id: UUID | None
    passages: list[Passage]
    judged: Judged


def consult(
    database: Database, claim: Claim, embedders: Embedders, searches: Searches
) -> Consulted:
    """Ask the bot's collection, and the web where its policy says so and the collection does not
    know; the same for each of the turn's attempts.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    if claim.knowledge is None:
        return Consulted()
    return _pinned(database, claim) or _ask(database, claim, claim.knowledge, embedders, searches)


def decline(database: Database, claim: Claim, consulted: Consulted) -> Answered | None:
    """What the bot says by itself; None: its model is to answer."""
    verdict = consulted.verdict
    if verdict is None or not verdict.is_reply:
        return None
    question = question_of(claim.messages)
    titles = [source.title for source in consulted.sources]
    text = said(read_policy(database, claim), verdict, question, titles)
    because = "The bot does not know." if verdict is Verdict.HANDED_OFF else None
    return Answered(Reply(content=text, finish_reason="stop", usage=Usage()), because)


def question_of(messages: tuple[Message, ...]) -> str:
    """The end of what the user said last."""
    asked = next((each.text for each in reversed(messages) if each.role is Role.USER), "")
    return asked[-MAX_QUESTION_CHARS:]


def _pinned(database: Database, claim: Claim) -> Consulted | None:
    rows = database.fetch(_PinnedRow, _READ, (claim.turn_id,))
    if not rows:
        return None
    row = rows[0]
    sources = tuple(map(Source.model_validate, row.sources[: row.shown]))
    return Consulted(sources, Verdict.read(row.verdict))


def _ask(
    database: Database, claim: Claim, collection: str, embedders: Embedders, searches: Searches
) -> Consulted:
    policy = read_policy(database, claim)
    question = question_of(claim.messages)
    last = last_missed(database, claim.conversation_id, claim.seq) if policy.steps else None
    wanted = resolved(question, last)
    hide = partial(for_server, claim.safety, claim.turn_id)
    asked = embedders.ask(database, claim.tenant_id, collection, wanted, hide)
    found = _search(database, claim.tenant_id, collection, wanted, asked)
    verdict, *later = _verdicts(policy, question, found, last)
    pages: tuple[Source, ...] = ()
    if verdict is Verdict.SEARCHED:
        pages = sift_pages(claim, searches.find(claim, own_words(question, last)))
        verdict = verdict if pages else later[0]
    sources = pages or tuple(map(_source, _kept(verdict, found.passages)))
    consulted = Consulted(sources, verdict)
    if not _pin(database, claim, consulted, wanted, found):
        # An earlier attempt, whose commit came late, has pinned something; or this one is over.
        return _pinned(database, claim) or consulted
    VERDICTS.labels(verdict).inc()
    log.log(
        logging.INFO if verdict.is_reply or pages else logging.DEBUG,
        "knowledge.asked",
        turn_id=claim.turn_id.hex,
        verdict=verdict,
        probability=found.judged.probability,
    )
    return consulted


def _search(
    database: Database, tenant_id: UUID, collection: str, question: str, asked: Asked | None
) -> _Found:
    collection_id, gate = read_gate(database, tenant_id, collection)
    passages = search(database, tenant_id, collection, question, DEPTH, asked)
    return _Found(collection_id, passages, judge(gate, question, passages))


def _verdicts(
    policy: UnknownPolicy, question: str, found: _Found, last: Missed | None
) -> list[Verdict]:
    """What becomes of the question; behind a search, what does if that finds nothing."""
    zone = found.judged.zone
    if zone is Zone.KNOWN:
        return [Verdict.ANSWERED]
    if last is None and _asks_nothing(question):
        return [Verdict.CHAT]
    if not policy.steps:
        return [Verdict.UNANSWERED]
    return next_verdicts(policy.steps, last, may_clarify=zone is Zone.UNSURE)


def _kept(verdict: Verdict, passages: list[Passage]) -> list[Passage]:
    """What the model is shown, or what the user is asked about."""
    match verdict:
        case Verdict.CLARIFY:
            return near(passages)
        case Verdict.UNCERTAIN | Verdict.HANDED_OFF:
            return []
        case _:
            return shown(passages, passed=verdict is Verdict.ANSWERED)


def _source(passage: Passage) -> Source:
    titles = dict.fromkeys(filter(None, (passage.title, passage.heading)))
    return Source(
        document_id=passage.document_id.hex,
        version=passage.version,
        uri=passage.uri,
        title=" › ".join(titles),
        content=passage.content,
        score=round(passage.score, 3),
        url=passage.url,
    )


def _asks_nothing(question: str) -> bool:
    return len(lexemes(question)) <= MAX_CHAT_WORDS and not {*"?？"} & {*question}


def _pin(
    database: Database, claim: Claim, consulted: Consulted, question: str, found: _Found
) -> bool:
    """Commit what was found; False if something is pinned already, or the attempt is over."""
    verdict = consulted.verdict
    values = claim.owned | {
        "sources": Jsonb([source.model_dump() for source in consulted.sources]),
        "verdict": verdict,
        "probability": found.judged.probability,
        "gap": new_id(),
        "question": question,
        "collection": found.collection_id,
        "is_missed": verdict is not None and verdict.is_missed,
    }
    return bool(database.run(_PIN, values))

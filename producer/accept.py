"""Accept: one transaction makes turns a promise.

When `accept` returns, Postgres holds the turn and, if no earlier turn of its conversation
is open, the outbox row that owes the broker a hint. The broker itself is not involved, so
its absence cannot refuse a user.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar
from uuid import UUID

import psycopg
from pydantic import TypeAdapter

from turnmill.producer.capable import refuse_impossible
from turnmill.producer.media.known import refuse_unknown_files
from turnmill.schemas.errors import Conflict, InvalidInput, NotFound, TransientError, UnknownBot
from turnmill.schemas.formats.calls import check_tools, demanded_tools
from turnmill.schemas.formats.checking import check_format
from turnmill.schemas.ids import new_id
from turnmill.schemas.joining import all_asked
from turnmill.schemas.postgres.arrays import array, bytea
from turnmill.schemas.postgres.database import Cursor, Database, notify_after_commit
from turnmill.schemas.postgres.rows import fetch
from turnmill.schemas.routes import OUTBOX_CHANNEL
from turnmill.schemas.safety.messages import without_personal
from turnmill.schemas.safety.policy import Safety
from turnmill.schemas.store.accept import INSERT_TURNS
from turnmill.schemas.store.advance import advance
from turnmill.schemas.turns import (
    DEFAULT_PARAMS,
    AcceptedTurn,
    GenerationParams,
    Message,
    TurnRequest,
    TurnState,
)

T = TypeVar("T")

#: Races with calls of the same idempotency key; one is lost once per competing transaction.
MAX_RACES = 10

#: Parameters that fingerprints of the first release do not have.
_LATER_PARAMS = ("top_k", "min_p", "repetition_penalty", "template_kwargs")

_MESSAGES = TypeAdapter(tuple[Message, ...])

#: What tells requests apart: tenant and idempotency key, or the id of the turn to be.
_Key = tuple[UUID, str] | UUID


class _Bot(NamedTuple):
    tenant_id: UUID
    name: str
    id: UUID
    version: int
    model: str
    params: dict[str, object]
    safety: dict[str, object] | None


_BOTS = """
SELECT tenant_id, name, id, version, model, params, policies -> 'safety' AS safety FROM bots
WHERE (tenant_id, name) IN (SELECT * FROM unnest(%s::uuid[], %s::text[])) AND deleted_at IS NULL
"""


class _Seen(NamedTuple):
    tenant_id: UUID
    idempotency_key: str
    fingerprint: bytes | None
    id: UUID
    conversation_id: UUID
    seq: int
    state: str
    author: str | None


_SEEN = """
SELECT tenant_id, idempotency_key, fingerprint, id, conversation_id, seq, state, author FROM turns
WHERE (tenant_id, idempotency_key) IN (SELECT * FROM unnest(%s::uuid[], %s::text[]))
"""


class _Numbered(NamedTuple):
    id: UUID
    tenant_id: UUID
    bot_id: UUID
    next_seq: int
    answered_seq: int
    handed_off_at: datetime | None


#: Takes the numbers of the new turns. The rows are locked in the order of their ids, so that
#: two accepts of the same conversations cannot wait for each other.
_TAKE_NUMBERS = """
INSERT INTO conversations (id, tenant_id, bot_id, next_seq)
SELECT id, tenant_id, bot_id, turn_count + 1
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::int[]) AS n (id, tenant_id, bot_id, turn_count)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET next_seq = conversations.next_seq + excluded.next_seq - 1
RETURNING id, tenant_id, bot_id, next_seq, answered_seq, handed_off_at
"""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request with what is decided about it."""

    request: TurnRequest
    turn_id: UUID
    conversation_id: UUID
    bot_id: UUID
    bot_version: int
    model: str
    params: GenerationParams
    fingerprint: bytes | None


def accept(database: Database, request: TurnRequest) -> AcceptedTurn:
    """Accept one turn; see `accept_many`."""
    return accept_many(database, [request])[0]


def accept_many(database: Database, requests: Sequence[TurnRequest]) -> list[AcceptedTurn]:
    """Accept turns in one transaction, all or none; within a conversation in the order given.

    A request whose idempotency key is known is answered with the turn that has it.

    Raises:
        UnknownBot: the tenant has no bot of this name.
        Conflict: an idempotency key was used before for a different request.
        NotFound: the conversation, or a file, belongs to another tenant.
        InvalidInput: the conversation belongs to another bot, no live worker can do what a turn
            asks for, or its format cannot be kept; `param` is the field that asks.
        DatabaseUnavailable: nothing was accepted.
    """
    for request in requests:
        # Before the transaction: a schema takes a while, and what is read of it is kept.
        if request.params.response_format is not None:
            check_format(request.params.response_format)
        check_tools(request.params)
    return racing(database, lambda cursor: accept_in(cursor, requests))


def racing(database: Database, work: Callable[[Cursor], T]) -> T:
    """Do what accepts turns in a transaction, and again if another call with the same key won.

    Raises:
        TransientError: so many others won.
        DatabaseUnavailable: nothing changed.
    """
    for _ in range(MAX_RACES):
        try:
            with database.cursor() as cursor:
                return work(cursor)
        except psycopg.errors.UniqueViolation:
            # Another call with the same key committed first; the next round finds its turn.
            continue
    raise TransientError("Too many calls at once with the same idempotency keys; try again.")


def is_known(cursor: Cursor, request: TurnRequest) -> bool:
    """Whether a turn has the request's idempotency key already."""
    key = _key(request)
    return key is not None and bool(cursor.execute(_SEEN, ([key[0]], [key[1]])).fetchone())


def as_stored(cursor: Cursor, request: TurnRequest) -> TurnRequest:
    """Return a request with its messages as its turn would store them. Raises `UnknownBot`."""
    return _prepare(cursor, [request])[0].request


def asked_params(cursor: Cursor, request: TurnRequest) -> dict[str, object]:
    """Return the parameters of a request as its turn would store them. Raises `UnknownBot`."""
    return _prepare(cursor, [request])[0].params.model_dump(mode="json", exclude_none=True)


def accept_in(
    cursor: Cursor,
    requests: Sequence[TurnRequest],
    *,
    delay_s: float = 0.0,
    is_for_people: bool = False,
) -> list[AcceptedTurn]:
    """Accept turns in the caller's transaction; see `accept_many`.

    Those that are due become so in `delay_s` seconds, at most `MAX_DELAY_S`. Whether a worker can
    answer them does not matter where people do.

    Raises psycopg's `UniqueViolation` where another transaction used an idempotency key meanwhile.
    """
    entries = _prepare(cursor, requests)
    refuse_unknown_files(cursor, requests)
    seen = _find_seen(cursor, entries)
    fresh: dict[_Key, _Entry] = {}
    for entry in entries:
        key = _key(entry.request) or entry.turn_id
        if key in seen:
            _check_same_request(entry, seen[key].fingerprint, seen[key].author)
        elif (first := fresh.setdefault(key, entry)) is not entry:
            _check_same_request(entry, first.fingerprint, first.request.author)
    if not is_for_people:
        refuse_impossible(cursor, [(e.model, e.request, e.params) for e in fresh.values()])
    inserted = _insert(cursor, list(fresh.values()), delay_s)
    accepted = dict(zip(fresh, inserted, strict=True))
    return [
        _duplicate(seen[key]) if key in seen else accepted[key]
        for key in (_key(entry.request) or entry.turn_id for entry in entries)
    ]


def _prepare(cursor: Cursor, requests: Sequence[TurnRequest]) -> list[_Entry]:
    # No bot has a name that PostgreSQL cannot store, nor can it be asked for one.
    named = {(each.tenant_id, each.bot) for each in requests if "\0" not in each.bot}
    asked = ([tenant for tenant, _ in named], [name for _, name in named])
    bots = {
        (bot.tenant_id, bot.name): (
            bot,
            GenerationParams.model_validate(bot.params).over(DEFAULT_PARAMS),
            Safety.of(bot.safety),
        )
        for bot in fetch(cursor, _Bot, _BOTS, asked)
    }
    entries = []
    for request in requests:
        known = bots.get((request.tenant_id, request.bot))
        if known is None:
            raise UnknownBot(f"There is no bot or model '{request.bot}'.", param="model")
        bot, defaults, safety = known
        entries.append(
            _Entry(
                _masked(request, safety),
                turn_id=new_id(),
                conversation_id=request.conversation_id or new_id(),
                bot_id=bot.id,
                bot_version=bot.version,
                model=bot.model,
                params=_formatted(request.params.over(defaults)),
                fingerprint=fingerprint(request) if request.idempotency_key else None,
            )
        )
    return entries


def _masked(request: TurnRequest, safety: Safety) -> TurnRequest:
    """The request as its bot lets it be stored."""
    if safety.stored == "plain":
        return request
    messages = without_personal(request.messages, safety.regions)
    return request.model_copy(update={"messages": messages})


def _formatted(params: GenerationParams) -> GenerationParams:
    """Check the format, and those of tools' arguments. A reply with one, or that must call a tool,
    ends with it, and never at a stop string inside.

    Raises `InvalidInput`.
    """
    check_tools(params)
    if params.response_format is not None:
        check_format(params.response_format)
    elif not demanded_tools(params):
        return params
    return params.model_copy(update={"stop": ()})


def _find_seen(cursor: Cursor, entries: Iterable[_Entry]) -> dict[_Key, _Seen]:
    keys = [key for entry in entries if (key := _key(entry.request))]
    if not keys:
        return {}
    asked = tuple(map(array, zip(*keys, strict=True)))
    return {(row.tenant_id, row.idempotency_key): row for row in fetch(cursor, _Seen, _SEEN, asked)}


def _insert(cursor: Cursor, entries: list[_Entry], delay_s: float) -> list[AcceptedTurn]:
    if not entries:
        return []
    numbers = _take_numbers(cursor, entries)
    accepted = []
    for entry in entries:
        first_open, seq = numbers[entry.conversation_id]
        numbers[entry.conversation_id] = (first_open, seq + 1)
        accepted.append(
            AcceptedTurn.model_construct(
                turn_id=entry.turn_id,
                conversation_id=entry.conversation_id,
                seq=seq,
                state=_first_state(first_open, seq),
                is_duplicate=False,
            )
        )
    cursor.execute(INSERT_TURNS, _columns(entries, accepted) | {"delay_s": delay_s})
    if any(turn.state is TurnState.QUEUED for turn in accepted):
        notify_after_commit(cursor, OUTBOX_CHANNEL)
    ended = {turn.conversation_id for turn in accepted if turn.state is TurnState.HANDED_OFF}
    if ended:
        advance(cursor, list(ended))
    return accepted


def _first_state(first_open: int | None, seq: int) -> TurnState:
    if first_open is None:
        return TurnState.HANDED_OFF
    return TurnState.QUEUED if seq == first_open else TurnState.WAITING


def _take_numbers(cursor: Cursor, entries: list[_Entry]) -> dict[UUID, tuple[int | None, int]]:
    """For each conversation: the number that would be due at once, and the first free number.

    In one that is handed off none is due.
    """
    counts = Counter(entry.conversation_id for entry in entries)
    owners = {e.conversation_id: (e.request.tenant_id, e.bot_id) for e in entries}
    taken = (
        array(counts),
        array(owners[conversation][0] for conversation in counts),
        array(owners[conversation][1] for conversation in counts),
        array(counts.values()),
    )
    numbers: dict[UUID, tuple[int | None, int]] = {}
    for row in fetch(cursor, _Numbered, _TAKE_NUMBERS, taken):
        tenant_id, bot_id = owners[row.id]
        if row.tenant_id != tenant_id:
            raise NotFound("There is no such conversation.", param="conversation")
        if row.bot_id != bot_id:
            raise InvalidInput("The conversation belongs to another bot.", param="model")
        first_open = None if row.handed_off_at else row.answered_seq + 1
        numbers[row.id] = (first_open, row.next_seq - counts[row.id])
    return numbers


def _columns(entries: list[_Entry], accepted: list[AcceptedTurn]) -> dict[str, object]:
    """Write the parameters of `INSERT_TURNS`. Parameters of a turn that nobody set are left out:
    the previous release's workers may not know them.
    """
    requests = [entry.request for entry in entries]
    return {
        "id": array(entry.turn_id for entry in entries),
        "tenant_id": array(request.tenant_id for request in requests),
        "conversation_id": array(entry.conversation_id for entry in entries),
        "seq": array(turn.seq for turn in accepted),
        "bot_id": array(entry.bot_id for entry in entries),
        "model": array(entry.model for entry in entries),
        "lane": array(request.lane for request in requests),
        "state": array(turn.state for turn in accepted),
        "input": array(_MESSAGES.dump_json(all_asked(request)) for request in requests),
        "params": array(entry.params.model_dump_json(exclude_none=True) for entry in entries),
        "idempotency_key": array(request.idempotency_key for request in requests),
        "fingerprint": array(bytea(entry.fingerprint) for entry in entries),
        "batch_id": array(request.batch_id for request in requests),
        "batch_row": array(request.batch_row for request in requests),
        "timeout_s": array(request.timeout_s for request in requests),
        "bot_version": array(entry.bot_version for entry in entries),
        "author": array(request.author for request in requests),
        "user_key": array(request.user_key for request in requests),
    }


def _key(request: TurnRequest) -> tuple[UUID, str] | None:
    if request.idempotency_key is None:
        return None
    return request.tenant_id, request.idempotency_key


def fingerprint(request: TurnRequest) -> bytes:
    """Digest what must be the same when an idempotency key is used again.

    Parameters of later releases count only where they are given, so that a call repeated after an
    upgrade finds its turn.
    """
    asked = request.model_dump_json(
        include={"bot", "messages", "params", "lane", "conversation_id", "timeout_s"},
        exclude={"params": {n for n in _LATER_PARAMS if getattr(request.params, n) is None}},
    )
    return hashlib.sha256(asked.encode()).digest()


def _check_same_request(entry: _Entry, fingerprint: bytes | None, author: str | None) -> None:
    # A reply may tell what is remembered of its author, whom a turn lacks once they are forgotten.
    if entry.fingerprint != fingerprint or author not in (None, entry.request.author):
        raise Conflict(
            f"The idempotency key '{entry.request.idempotency_key}' was used before "
            "with a different body. Use a new key for a new turn."
        )


def _duplicate(row: _Seen) -> AcceptedTurn:
    return AcceptedTurn(
        turn_id=row.id,
        conversation_id=row.conversation_id,
        seq=row.seq,
        state=TurnState(row.state),
        is_duplicate=True,
    )

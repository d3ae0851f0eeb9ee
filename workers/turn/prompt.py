"""The prompt of a turn: instructions, history, and the new messages, within the context window."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice, takewhile

from turnmill.schemas.errors import EngineFailure, InvalidInput
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.history import PastTurn, is_system, read_past
from turnmill.schemas.turns import Message
from turnmill.workers.context.format_note import note_of
from turnmill.workers.engines.base import Engine, Prompt
from turnmill.workers.media.media import recalled
from turnmill.workers.turn.claim import Claim
from turnmill.workers.turn.draft import Draft
from turnmill.workers.turn.summary import Summarizer

#: Turns of history that are looked at; no model of today reads further back.
HISTORY_LIMIT = 500

#: Gives the newest images of messages their bytes, as `Media.show`.
Show = Callable[[Sequence[Message]], tuple[Message, ...]]

#: The oldest of them stays the same for so many turns: engines remember how prompts begin.
HISTORY_STEP = 100


def build_prompt(
    database: Database,
    engine: Engine,
    claim: Claim,
    summarizer: Summarizer | None = None,
    *,
    documents_share: float = 0.5,
    show: Show = tuple,
) -> Prompt:
    """The prompt of a claimed turn.

    History is dropped by whole turns, oldest first, until the reply has room; the bot's
    instructions and the turn's own messages always stay. The instructions and the system texts
    at the beginning of the turn's messages become one system message, because many chat
    templates know no second one. What is remembered of the user stands below them, and the format
    of the reply, which the grammar enforces and the model else knows nothing of. With a
    summarizer, a summary of what was dropped stands at the end of it, where it fits. The turn's
    documents stand in its last message of the user, within their share of the context window; no
    later prompt has them.

    `show` gives images of messages their bytes, before anything is counted.
    """
    draft = _with_format(_draft(database, engine, claim, show), claim)
    documents = (*claim.documents, *(source.document for source in claim.sources))
    if documents:
        draft = draft.with_documents(documents, int(engine.context_window * documents_share))
    messages = None
    if summarizer is not None and draft.past:
        with suppress(EngineFailure, InvalidInput):  # a chat template may know no system message
            messages = _summarized(draft, summarizer, may_extend=claim.attempt == 1)
    return Prompt(
        messages or _trimmed(draft),
        prefix=claim.kept_text,
        lane=claim.lane,
        cache_namespace=claim.cache_namespace,
        template_kwargs=draft.template_kwargs,
        tools=draft.tools,
        document_count=len(draft.documents),
    )


def _draft(database: Database, engine: Engine, claim: Claim, show: Show) -> Draft:
    own = [message.text for message in takewhile(is_system, claim.messages)]
    wanted = claim.params.max_tokens or 1
    past = _read_past(database, engine, claim) if claim.seq > 1 else ()
    past, asked = _shown(past, claim.messages[len(own) :], show)
    return Draft(
        engine,
        budget=engine.context_window - min(wanted, engine.context_window // 2),
        instructions=(claim.instructions, *own, claim.remembered),
        past=past,
        asked=asked,
        cache_namespace=claim.cache_namespace,
        template_kwargs=claim.params.template_kwargs or {},
        tools=claim.params.tools,
        cites=claim.is_to_cite,
    )


def _with_format(draft: Draft, claim: Claim) -> Draft:
    """With the format of the reply, where the turn still fits and the model takes instructions."""
    note = note_of(claim.params.response_format, draft.engine)
    if not note:
        return draft
    noted = replace(draft, instructions=(*draft.instructions, note))
    with suppress(EngineFailure, InvalidInput):  # a chat template may know no system message
        if noted.fits(len(draft.past)):
            return noted
    return draft


def _shown(
    past: Sequence[PastTurn], asked: Sequence[Message], show: Show
) -> tuple[Sequence[PastTurn], tuple[Message, ...]]:
    """What is said and was said, with its newest images."""
    messages = iter(show([*chain.from_iterable(turn.messages for turn in past), *asked]))
    past = [replace(turn, messages=tuple(islice(messages, len(turn.messages)))) for turn in past]
    return past, tuple(messages)


def _summarized(
    draft: Draft, summarizer: Summarizer, *, may_extend: bool
) -> tuple[Message, ...] | None:
    """None if a summary would leave no room for the turn itself.

    Later attempts extend no summary: they continue from what the first one read, and a turn is not
    lost to what may have killed its worker.
    """
    current = draft.after(summarizer.read())
    fewest = current.fewest_to_drop()
    if fewest and may_extend and (longer := summarizer.extend(current)):
        current = draft.after(longer)
        fewest = current.fewest_to_drop()
    return None if fewest is None else current.messages(current.steady_to_drop(fewest))


def _trimmed(draft: Draft) -> tuple[Message, ...]:
    # What cannot fit is the engine's to refuse; counting may take a call to a server.
    fewest = draft.fewest_to_drop() if draft.past else None
    return draft.messages(len(draft.past) if fewest is None else draft.steady_to_drop(fewest))


def _read_past(database: Database, engine: Engine, claim: Claim) -> Sequence[PastTurn]:
    before = (claim.seq - 1 - HISTORY_LIMIT) // HISTORY_STEP * HISTORY_STEP
    past = read_past(database, claim.conversation_id, claim.seq, after=before)
    return recalled(database, claim, past, engine.capabilities.accepts)

"""Summaries: what was said in the turns that a prompt has no room for.

A conversation has one, kept with the number of the last turn that it tells of. When a prompt no
longer fits, the oldest turns go into it: the engine is given the old summary and those turns,
as they stood in the last prompt, whose beginning it may still have computed, and is asked for a
new one. That happens once for several turns, and whatever fails there leaves the turn as it
would be without summaries.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import structlog

from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.history import PastTurn
from turnmill.schemas.turns import GenerationParams, Message, Reply, Role, Usage
from turnmill.workers.engines.base import NO_VALUES, Engine, Prompt
from turnmill.workers.turn.abort import Interrupted
from turnmill.workers.turn.attempt import Attempt
from turnmill.workers.turn.clean import clean
from turnmill.workers.turn.draft import Draft, Summary

log = structlog.get_logger()

#: Words of a summary for each token that it may take: so many fit in most languages.
_WORDS_PER_TOKEN = 0.5

_ASK = (
    "Summarize our conversation so far in at most {words} words. The notes on what was said before "
    "it, if there are any, belong to it. Keep names, numbers, dates, decisions, what I asked for "
    "and what is still open. Write the summary only, in the language that we speak."
)


class _Kept(NamedTuple):
    seq: int
    content: str


_READ = "SELECT seq, content FROM summaries WHERE conversation_id = %s AND seq < %s"

#: Fenced like all that an attempt writes. What it builds on must still stand: the pruner takes a
#: summary away together with a turn that it tells of.
_KEEP = """
WITH owned AS (
    SELECT conversation_id FROM turns
    WHERE id = %(turn)s AND attempt = %(attempt)s AND worker_id = %(worker)s AND state = 'running'
    FOR SHARE
)
INSERT INTO summaries AS s (conversation_id, seq, content)
SELECT conversation_id, %(seq)s, %(content)s FROM owned
WHERE %(before)s = coalesce(
    (SELECT seq FROM summaries WHERE conversation_id = owned.conversation_id), 0)
ON CONFLICT (conversation_id) DO UPDATE
    SET seq = excluded.seq, content = excluded.content, created_at = clock_timestamp()
    WHERE s.seq = %(before)s
RETURNING seq
"""


class _NotWritten(TurnmillError):
    """The engine wrote no summary."""


@dataclass(frozen=True, slots=True)
class Summarizer:
    """Reads and extends the summary of the conversation of one attempt's turn."""

    database: Database
    attempt: Attempt
    #: Of the context window: what a summary may take.
    share: float

    def read(self) -> Summary:
        """Raises `DatabaseUnavailable`."""
        claim = self.attempt.claim
        rows = self.database.fetch(_Kept, _READ, (claim.conversation_id, claim.seq))
        return Summary(*rows[0]) if rows else Summary()

    def extend(self, draft: Draft) -> Summary | None:
        """A summary that tells of the draft's oldest turns too, and is kept; None if that failed.

        So many turns go into it that the next ones will fit.
        """
        try:
            return self._extend(draft)
        except Interrupted:
            raise
        except Exception as error:
            log.warning(
                "summary.failed",
                turn_id=self.attempt.claim.turn_id.hex,
                error=error.message if isinstance(error, TurnmillError) else type(error).__name__,
            )
            return None

    def _extend(self, draft: Draft) -> Summary | None:
        limit = max(1, int(draft.engine.context_window * self.share))
        told = draft.past[: _count_to_tell(draft, limit)]
        asking = _fitting(_question(draft, told, limit))
        if not asking.past:
            return None
        started_at = time.monotonic()
        reply = self._generate(draft.engine, asking.messages(0), limit)
        summary = Summary(asking.past[-1].seq, reply.content)
        is_kept = self._keep(draft.summary, summary)
        log.info(
            "conversation.summarized",
            turn_id=self.attempt.claim.turn_id.hex,
            turn_count=len(asking.past),
            is_kept=is_kept,
            took_s=round(time.monotonic() - started_at, 3),
            **reply.usage.model_dump(),
        )
        return summary if is_kept else None

    def _generate(self, engine: Engine, messages: tuple[Message, ...], limit: int) -> Reply:
        """Raises `_NotWritten`."""
        ends_at = (time.monotonic() + self.attempt.ends_at) / 2
        claim = self.attempt.claim
        prompt = Prompt(messages, lane=claim.lane, cache_namespace=claim.cache_namespace)
        params = GenerationParams(temperature=0, top_p=1, max_tokens=limit)
        text, token_count = "", 0
        for chunk in clean(engine.generate(prompt, params, self.attempt.abort)):
            text += chunk.text
            token_count += chunk.token_count
            if chunk.finish_reason is not None:
                usage = Usage(
                    prompt_tokens=chunk.prompt_tokens,
                    completion_tokens=token_count,
                    cached_tokens=chunk.cached_tokens,
                )
                if not text.strip():
                    raise _NotWritten("The engine has nothing to say.")
                return Reply(content=text.strip(), finish_reason=chunk.finish_reason, usage=usage)
            if self.attempt.abort.is_set():
                break
            if time.monotonic() > ends_at:
                raise _NotWritten("It would take more than half of the turn's time.")
        raise _NotWritten("The engine was stopped.")

    def _keep(self, before: Summary, summary: Summary) -> bool:
        """False if the attempt was fenced, or the old summary has gone."""
        claim = self.attempt.claim
        rows = self.database.run(
            _KEEP,
            {
                "turn": claim.turn_id,
                "attempt": claim.attempt,
                "worker": claim.worker_id,
                "seq": summary.seq,
                "content": summary.content,
                "before": before.seq,
            },
        )
        return bool(rows)


def _count_to_tell(draft: Draft, limit: int) -> int:
    """How many of the oldest turns; 0 if the turn's own messages leave a summary no room."""
    # As if it were written, and took all that it may.
    written = Summary(draft.past[0].seq, "…")
    fewest = replace(draft, budget=draft.budget - limit, summary=written).fewest_to_drop()
    return 0 if fewest is None else draft.most_to_drop(max(1, fewest))


def _question(draft: Draft, told: Sequence[PastTurn], limit: int) -> Draft:
    """The prompt for a summary. Its beginning is that of the conversation's last prompt."""
    words = max(1, int(limit * _WORDS_PER_TOKEN))
    asked = Message(role=Role.USER, content=_ASK.format(words=words))
    return replace(
        draft,
        budget=draft.engine.context_window - limit,
        past=told,
        asked=(asked,),
        documents=(),
        template_kwargs=NO_VALUES,
        tools=(),
    )


def _fitting(asking: Draft) -> Draft:
    """The question with as many of the oldest turns as fit; the conversation's next turns tell of
    the others. That happens when summaries have just been turned on. A turn that fits into no
    question is left out; without a past, nothing fits.
    """
    if asking.fits(0):
        return asking
    past = asking.past if asking.fits(len(asking.past)) else ()
    while past:
        if count := _count_that_fits(replace(asking, past=past)):
            return replace(asking, past=past[:count])
        past = past[1:]
    return replace(asking, past=())


def _count_that_fits(asking: Draft) -> int:
    def is_too_long(count: int) -> bool:
        return not replace(asking, past=asking.past[:count]).fits(0)

    return bisect_left(range(1, len(asking.past) + 1), True, key=is_too_long)

"""What a bot says when its collection does not answer: one step up its ladder with each miss."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.channels.unknown import Step, UnknownPolicy
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.store.knowledge.verdicts import Verdict
from turnmill.schemas.turns import Lane, TurnState
from turnmill.workers.delivery.texts.sources import plain_title
from turnmill.workers.turn.claim import Claim

#: Characters of the question that is searched for: the end of a long message says what is wanted.
MAX_QUESTION_CHARS = 2000
#: Titles that a clarifying question offers.
MAX_CHOICES = 3

#: A person who answered, or was to, ends the misses in a row. Turns that were cancelled or failed
#: told the user nothing.
_LAST = f"""
SELECT t.state, t.input -> -1 -> 'content' AS asked, s.verdict, s.sources
FROM turns t LEFT JOIN turn_sources s ON s.turn_id = t.id
WHERE t.conversation_id = %s AND t.seq < %s
  AND t.state IN ('{TurnState.COMPLETED}', '{TurnState.HANDED_OFF}')
ORDER BY t.seq DESC LIMIT 1
"""

_POLICY = """
SELECT coalesce(b.policies -> 'unknown', '{}') || coalesce(c.policies -> 'unknown', '{}')
        AS unknown,
    coalesce(b.policies -> 'unknown' -> 'steps' @> '"search"', false) AS may_search
FROM bots b JOIN conversations c ON c.bot_id = b.id WHERE c.id = %s
"""

_STEPS = {
    Verdict.SEARCHED: Step.SEARCH,
    Verdict.CLARIFY: Step.CLARIFY,
    Verdict.UNCERTAIN: Step.UNCERTAIN,
    Verdict.HANDED_OFF: Step.HAND_OFF,
}
_VERDICTS = {step: verdict for verdict, step in _STEPS.items()}

_NUMBER = re.compile(r"\D*([1-9])\D*")


class _PolicyRow(NamedTuple):
    #: `UnknownPolicy` as JSON.
    unknown: dict[str, object]
    #: Whether the bot's own ladder has the step: whoever may change a conversation cannot send its
    #: questions to a server that the bot's owner chose none to be sent to.
    may_search: bool


class _LastRow(NamedTuple):
    state: str
    #: A message's content as JSON.
    asked: object
    verdict: str | None
    #: `Source`s as JSON.
    sources: list[dict[str, object]] | None


class Missed(NamedTuple):
    """The conversation's last turn, where its question was missed."""

    step: Step
    question: str
    #: What a clarifying question offered.
    choices: tuple[str, ...]


def read_policy(database: Database, claim: Claim) -> UnknownPolicy:
    """The policy of the turn's conversation, over its bot's, which alone adds the step `SEARCH`.
    No steps where replies without the model would be none: the turn awaits a format or calls of
    tools, gave its own passages, or an earlier attempt's text was streamed. The rows of a batch,
    thousands perhaps, or answered once more, search nothing, and no person is asked.
    """
    params = claim.params
    if params.response_format or params.tools or claim.documents or claim.kept_text:
        return UnknownPolicy()
    rows = database.fetch(_PolicyRow, _POLICY, (claim.conversation_id,))
    if not rows:
        return UnknownPolicy()
    policy = UnknownPolicy.of(rows[0].unknown)
    if claim.lane is Lane.BATCH:
        return policy.without_people.without_search
    return policy if rows[0].may_search else policy.without_search


def last_missed(database: Database, conversation_id: UUID, seq: int) -> Missed | None:
    """What the bot said by itself just before this turn, if it did and no person came between."""
    if seq == 1:
        return None
    rows = database.fetch(_LastRow, _LAST, (conversation_id, seq))
    if not rows or rows[0].state != TurnState.COMPLETED:
        return None
    verdict = Verdict.read(rows[0].verdict)
    step = None if verdict is None else _STEPS.get(verdict)
    if step is None or step in (Step.SEARCH, Step.HAND_OFF):
        return None
    asked = rows[0].asked[-MAX_QUESTION_CHARS:] if isinstance(rows[0].asked, str) else ""
    titles = [str(source.get("title", "")) for source in rows[0].sources or ()]
    return Missed(step, asked, choices(titles) if step is Step.CLARIFY else ())


def resolved(said: str, last: Missed | None) -> str:
    """What the collection is searched for: after a clarifying question, the title that was chosen,
    or both messages together.
    """
    chosen = _chosen(said, last)
    return own_words(said, last) if chosen is None else chosen


def own_words(said: str, last: Missed | None) -> str:
    """What the web is searched for, of which the user said each word: titles may be secrets."""
    if last is None or last.step is not Step.CLARIFY:
        return said
    is_number = _chosen(said, last) is not None
    return last.question if is_number else f"{last.question}\n{said}"


def _chosen(said: str, last: Missed | None) -> str | None:
    """The title whose number was said after a clarifying question; None: none was."""
    if last is None or last.step is not Step.CLARIFY:
        return None
    number = _NUMBER.fullmatch(said.strip()) if len(said) <= 16 else None
    if number is None or int(number[1]) > len(last.choices):
        return None
    return last.choices[int(number[1]) - 1]


def next_verdicts(
    steps: Sequence[Step], last: Missed | None, *, may_clarify: bool
) -> list[Verdict]:
    """The steps after the one that was taken last, and the last one again: the first that can be
    taken is. A search that came before is tried once more, for the question is another one.
    """
    begin = steps.index(last.step) + 1 if last is not None and last.step in steps else 0
    left = [step for step in steps[begin:] if may_clarify or step is not Step.CLARIFY]
    if Step.SEARCH in steps[:begin]:
        left.insert(0, Step.SEARCH)
    said = [step for step in steps if step not in (Step.CLARIFY, Step.SEARCH)]
    return [_VERDICTS[step] for step in (*left, said[-1] if said else Step.UNCERTAIN)]


def choices(titles: Sequence[str]) -> tuple[str, ...]:
    """The titles that a clarifying question offers: a question as it is, else with its headings."""
    last_parts = ((title, title.rpartition(" › ")[2]) for title in titles)
    names = (last if last.endswith(("?", "？")) else title for title, last in last_parts)
    return tuple(dict.fromkeys(filter(None, names)))[:MAX_CHOICES]


def said(policy: UnknownPolicy, verdict: Verdict, question: str, titles: Sequence[str]) -> str:
    """What the bot says."""
    text = policy.text(_STEPS[verdict], question)
    if verdict is not Verdict.CLARIFY:
        return text
    offered = (
        f"{number}. {plain_title(each)}" for number, each in enumerate(choices(titles), start=1)
    )
    return "\n".join([text, *offered])

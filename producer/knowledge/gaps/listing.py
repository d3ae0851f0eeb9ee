"""Open gaps, grouped by what they ask."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from turnmill.producer.knowledge.gaps.grouping import NEAR, Weigh, group, similarity, weigher
from turnmill.schemas.errors import NotFound
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.safety.policy import Safety
from turnmill.schemas.store.knowledge.lexemes import lexemes

#: Of a collection, the latest: so many are grouped at a time.
MAX_OPEN = 5000

_OPEN = """
SELECT g.id, g.collection_id, c.name AS collection, c.passage_count, g.turn_id, g.question,
    g.verdict, g.created_at
FROM knowledge_gaps g JOIN collections c ON c.id = g.collection_id
WHERE g.tenant_id = %(tenant)s AND g.closed_at IS NULL
  AND c.name = coalesce(%(collection)s, c.name)
ORDER BY c.name, g.id DESC LIMIT %(most)s
"""

_ONE = """
SELECT g.id, g.collection_id, c.name AS collection, c.passage_count, g.turn_id, g.question,
    g.verdict, g.created_at
FROM knowledge_gaps g JOIN collections c ON c.id = g.collection_id
WHERE g.tenant_id = %s AND g.id = %s
"""

_FREQUENCIES = """
SELECT lexeme, df FROM collection_terms WHERE collection_id = %s AND lexeme = ANY(%s)
"""


_SAFETY = """
SELECT b.policies -> 'safety' AS safety FROM turns t JOIN bots b ON b.id = t.bot_id
WHERE t.tenant_id = %s AND t.id = %s
"""


class Gap(NamedTuple):
    """A question that a collection did not answer."""

    id: UUID
    collection_id: UUID
    collection: str
    passage_count: int
    turn_id: UUID
    question: str
    #: `Verdict`, `rated_down` or `taken_over`.
    verdict: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """Gaps that ask about the same, the latest first."""

    gaps: tuple[Gap, ...]

    @property
    def first(self) -> Gap:
        return self.gaps[0]


def list_groups(database: Database, tenant_id: UUID, collection: str | None = None) -> list[Group]:
    """Group the tenant's open gaps; those that were asked most often first."""
    params = {"tenant": tenant_id, "collection": collection, "most": MAX_OPEN}
    gaps = database.fetch(Gap, _OPEN, params)
    groups: list[Group] = []
    for name in dict.fromkeys(gap.collection for gap in gaps):
        own = [gap for gap in gaps if gap.collection == name]
        places = group([gap.question for gap in own], _weigher(database, own))
        groups += [Group(tuple(own[place] for place in each)) for each in places]
    return sorted(groups, key=lambda each: (-len(each.gaps), each.first.id.int))


def read_gap(database: Database, tenant_id: UUID, gap_id: UUID) -> Gap:
    """Read a gap, open or closed. Raises `NotFound`."""
    rows = database.fetch(Gap, _ONE, (tenant_id, gap_id))
    if not rows:
        raise NotFound(
            f"There is no gap {show_id(Prefix.GAP, gap_id)}: it was deleted with its turn, or is "
            "another tenant's.",
            param="gap",
        )
    return rows[0]


def near_gaps(database: Database, tenant_id: UUID, gap: Gap) -> list[Gap]:
    """The gap, and all open ones that ask about the same."""
    params = {"tenant": tenant_id, "collection": gap.collection, "most": MAX_OPEN}
    others = [each for each in database.fetch(Gap, _OPEN, params) if each.id != gap.id]
    weigh = _weigher(database, [gap, *others])
    own = lexemes(gap.question)
    return [gap] + [
        each for each in others if similarity(own, lexemes(each.question), weigh) >= NEAR
    ]


def safety_of(database: Database, tenant_id: UUID, gap: Gap) -> Safety:
    """Read what the bot's policy keeps from models. Raises `NotFound`: the turn was deleted."""
    rows = database.fetch(_SafetyRow, _SAFETY, (tenant_id, gap.turn_id))
    if not rows:
        raise NotFound("The question's turn was deleted.")
    return Safety.of(rows[0].safety)


class _SafetyRow(NamedTuple):
    safety: dict[str, object] | None


class _Frequency(NamedTuple):
    lexeme: str
    df: int


def _weigher(database: Database, gaps: Sequence[Gap]) -> Weigh:
    """Weigh lexemes as the collection of these gaps has them."""
    words = list({word for gap in gaps for word in lexemes(gap.question)})
    rows = database.fetch(_Frequency, _FREQUENCIES, (gaps[0].collection_id, words))
    return weigher({row.lexeme: row.df for row in rows}, gaps[0].passage_count)

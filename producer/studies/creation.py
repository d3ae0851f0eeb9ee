"""Create a study: items in random order, sides shuffled, some for several raters, some twice."""

import random
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg.types.json import Jsonb

from turnmill.producer.studies.model import Candidate, Kind, Study, check_dimensions
from turnmill.schemas.errors import Conflict, InvalidInput
from turnmill.schemas.ids import new_id
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.rows import fetch

#: Characters of a study's name.
MAX_NAME = 100

#: Twice is shown what stands in the first part of the order, so that some items lie in between.
_REPEATED_FROM = 0.6


class StudyRow(NamedTuple):
    """A row of `studies`."""

    study_id: UUID
    name: str
    kind: Kind
    dimensions: list[str]
    seed: int
    created_at: datetime
    closed_at: datetime | None

    @property
    def study(self) -> Study:
        return Study(
            self.study_id,
            self.name,
            self.kind,
            tuple(self.dimensions),
            self.seed,
            self.created_at,
            self.closed_at,
        )


_INSERT_STUDY = """
INSERT INTO studies (id, tenant_id, name, kind, dimensions, seed) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
RETURNING id AS study_id, name, kind, dimensions, seed, created_at, closed_at
"""

_INSERT_ITEM = """
INSERT INTO study_items (id, study_id, position, prompt, left_text, right_text, left_is_a, source,
    repeat_of, wanted)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


class Plan(NamedTuple):
    """How a study is laid out."""

    seed: int = 0
    #: The share of the items that several people rate, and how many do.
    overlap: float = 0.2
    raters: int = 3
    #: The share of the items that one of their raters sees again.
    repeats: float = 0.1


class _Placed(NamedTuple):
    """An item to be: its candidate, its sides, and which it repeats."""

    item_id: UUID
    candidate: Candidate
    left_is_a: bool
    wanted: int
    repeat_of: UUID | None = None


def create_study(
    database: Database,
    tenant_id: UUID,
    name: str,
    kind: Kind,
    candidates: Sequence[Candidate],
    dimensions: Sequence[str] = (),
    plan: Plan = Plan(),
) -> Study:
    """Create a study, whose items do not change any more.

    Raises:
        InvalidInput: there is no candidate, a name or a dimension is wrong, or a share is none.
        Conflict: the tenant has a study of this name.
    """
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(f"A study's name has 1 to {MAX_NAME} printable characters.")
    if not candidates:
        raise InvalidInput("There is nothing to rate.")
    rated = list(check_dimensions(kind, dimensions))
    placed = place(kind, candidates, plan)
    with database.cursor() as cursor:
        values = (new_id(), tenant_id, name, kind, rated, plan.seed)
        created = fetch(cursor, StudyRow, _INSERT_STUDY, values)
        if not created:
            raise Conflict(f"There is a study '{name}' already.", param="name")
        study = created[0].study
        rows = [_columns(study, at, each) for at, each in enumerate(placed, start=1)]
        cursor.executemany(_INSERT_ITEM, rows)
    return study


def place(kind: Kind, candidates: Sequence[Candidate], plan: Plan) -> list[_Placed]:
    """Lay out the items: the same for the same candidates and seed."""
    draw = random.Random(plan.seed)
    order = draw.sample(list(candidates), len(candidates))
    shared = set(draw.sample(range(len(order)), round(plan.overlap * len(order))))
    placed = [
        _Placed(new_id(), each, draw.random() < 0.5, plan.raters if at in shared else 1)
        for at, each in enumerate(order)
    ]
    early = placed[: max(1, round(_REPEATED_FROM * len(placed)))]
    again = draw.sample(early, min(len(early), round(plan.repeats * len(placed))))
    repeats = [
        _Placed(new_id(), each.candidate, draw.random() < 0.5, 1, each.item_id) for each in again
    ]
    # Among the last items, so that nobody is shown the same thing twice in a row.
    late = [*placed[len(early) :], *repeats]
    draw.shuffle(late)
    return [*early, *late]


def _columns(study: Study, position: int, item: _Placed) -> tuple[object, ...]:
    a, b = item.candidate.a, item.candidate.b
    is_pair = study.kind == "pairwise"
    left, right = (a, b) if item.left_is_a or not is_pair else (b, a)
    prompt = [message.model_dump(mode="json") for message in item.candidate.prompt]
    return (
        item.item_id, study.study_id, position, Jsonb(prompt), left, right if is_pair else None,
        item.left_is_a if is_pair else None, Jsonb(item.candidate.source), item.repeat_of,
        item.wanted,
    )  # fmt: skip

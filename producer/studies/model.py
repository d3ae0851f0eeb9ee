"""What a study is, and what a rater sees of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args
from uuid import UUID

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import Message

Kind = Literal["likert", "pairwise"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: The dimensions that have written anchors, by the kind of study that rates them by default.
DIMENSIONS: dict[Kind, tuple[str, ...]] = {
    "likert": ("fluency", "coherence", "informativeness"),
    "pairwise": ("preference",),
}

#: What can be rated in a pair: each reply's qualities are compared, too.
KNOWN: dict[Kind, tuple[str, ...]] = {
    "likert": DIMENSIONS["likert"],
    "pairwise": (*DIMENSIONS["pairwise"], *DIMENSIONS["likert"]),
}

#: The values of a rating. Of a pair: -1 the left reply is better, 0 neither, 1 the right one.
VALUES: dict[Kind, tuple[int, ...]] = {"likert": (1, 2, 3, 4, 5), "pairwise": (-1, 0, 1)}


@dataclass(frozen=True, slots=True)
class Study:
    study_id: UUID
    name: str
    kind: Kind
    dimensions: tuple[str, ...]
    seed: int
    created_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question with one reply (`a`) or two, before it is an item."""

    prompt: tuple[Message, ...]
    a: str
    b: str | None = None
    #: Who wrote the replies, and whatever else is known of them. Raters never see it.
    source: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """What a rater sees."""

    item_id: UUID
    prompt: tuple[Message, ...]
    left: str
    right: str | None


@dataclass(frozen=True, slots=True)
class Rater:
    rater_id: UUID
    name: str
    study: Study


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a rater is."""

    done: int
    #: Items that are there for this rater now, the one that is shown included.
    left: int

    @property
    def total(self) -> int:
        return self.done + self.left


def check_dimensions(kind: Kind, dimensions: Sequence[str]) -> tuple[str, ...]:
    """Return the dimensions, or those that this kind of study rates by default.

    Raises:
        InvalidInput: one is unknown.
    """
    known = KNOWN[kind]
    if unknown := [name for name in dimensions if name not in known]:
        raise InvalidInput(
            f"A {kind} study has no dimension '{unknown[0][:80]}'. Known are {', '.join(known)}.",
            param="dimension",
        )
    return tuple(dict.fromkeys(dimensions)) or DIMENSIONS[kind]


def check_kind(name: str) -> Kind:
    """Raises `InvalidInput`."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise InvalidInput(f"'{name[:80]}' is no kind of study. Known are {', '.join(KINDS)}.")


def check_values(study: Study, values: dict[str, int]) -> None:
    """Check that every dimension has a value that the study knows. Raises `InvalidInput`."""
    if missing := [name for name in study.dimensions if name not in values]:
        raise InvalidInput(f"There is no rating of {missing[0]}.", param=missing[0])
    for name, value in values.items():
        if name not in study.dimensions or value not in VALUES[study.kind]:
            raise InvalidInput(f"{value} is no rating of {name[:80]}.", param=name[:80])

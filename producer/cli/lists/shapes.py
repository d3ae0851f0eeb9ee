"""The lists that no use case has a shape of its own for: one class a command.

Ids are written as commands take them, times in ISO 8601 with their zone. docs/operations.md has a
table of all of them, which a test compares with these classes.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from turnmill.producer.knowledge.gaps.listing import Group
from turnmill.producer.knowledge.lookup import Collection, KnownDocument
from turnmill.producer.studies.lookup import Counts
from turnmill.producer.studies.model import Study
from turnmill.producer.tenants import APIKey, Tenant
from turnmill.schemas.batches import Batch, BatchFailures, BatchProgress, BatchState
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.store.memory.erasures import Erasure
from turnmill.schemas.turns import TurnState


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShownBatch(_Shown):
    batch_id: str
    name: str
    bot: str
    #: Turns of the batch, and those of them that have ended.
    total: int
    ended: int
    state: BatchState
    created_at: datetime


class BatchPage(_Shown):
    batches: list[ShownBatch]
    #: What `--after` takes for the next page.
    next: str | None

    @classmethod
    def of(cls, found: list[Batch], ended: Mapping[UUID, int], limit: int) -> Self:
        """Show up to `limit` batches with how many of their turns have ended.

        One more that was found says that there is a next page.
        """
        batches = found[:limit]
        following = show_id(Prefix.BATCH, batches[-1].batch_id) if len(found) > limit else None
        return cls(
            batches=[
                ShownBatch(
                    batch_id=show_id(Prefix.BATCH, each.batch_id), name=each.name, bot=each.bot,
                    total=each.total, ended=ended.get(each.batch_id, 0),
                    state=each.state(ended.get(each.batch_id, 0)), created_at=each.created_at,
                )
                for each in batches
            ],
            next=following,
        )  # fmt: skip


class ShownProgress(ShownBatch):
    """One batch, as `batch status --json` shows it."""

    states: dict[TurnState, int]
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    turns_per_s: float | None
    #: Seconds until it is done at this rate.
    left_s: float | None
    #: The commonest first.
    failures: list[BatchFailures]

    @classmethod
    def at(cls, batch: Batch, now: BatchProgress) -> Self:
        """Show how far a batch is."""
        return cls(
            batch_id=show_id(Prefix.BATCH, batch.batch_id), name=batch.name, bot=batch.bot,
            total=now.total, ended=now.settled, state=batch.state(now.settled),
            created_at=batch.created_at, states=now.states, attempts=now.attempts,
            prompt_tokens=now.prompt_tokens, completion_tokens=now.completion_tokens,
            turns_per_s=now.turns_per_s, left_s=now.left_s, failures=list(now.failures),
        )  # fmt: skip


class ShownKey(_Shown):
    key_id: str
    name: str
    #: How the key begins; the key itself is not kept.
    starts_with: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class KeyList(_Shown):
    keys: list[ShownKey]

    @classmethod
    def of(cls, keys: list[APIKey]) -> Self:
        """Show the keys."""
        return cls(
            keys=[
                ShownKey(
                    key_id=each.shown_id, name=each.name, starts_with=each.hint,
                    scopes=list(each.scopes), created_at=each.created_at,
                    revoked_at=each.revoked_at,
                )
                for each in keys
            ]
        )  # fmt: skip


class ShownTenant(_Shown):
    name: str
    bot_count: int
    #: Keys in force.
    key_count: int
    allows_training: bool
    created_at: datetime


class TenantList(_Shown):
    tenants: list[ShownTenant]

    @classmethod
    def of(cls, tenants: list[Tenant]) -> Self:
        """Show the tenants."""
        return cls(tenants=[ShownTenant(**each._asdict()) for each in tenants])


class ShownChannel(_Shown):
    name: str
    kind: str
    bot: str
    tenant: str
    #: Below the API's address.
    path: str


class ChannelList(_Shown):
    channels: list[ShownChannel]

    @classmethod
    def of(cls, channels: Mapping[str, ChannelSection], paths: Mapping[str, str]) -> Self:
        """Show the configured channels, each with its path."""
        return cls(
            channels=[
                ShownChannel(
                    name=name, kind=each.kind, bot=each.bot, tenant=each.tenant, path=paths[name]
                )
                for name, each in channels.items()
            ]
        )


class ShownGate(_Shown):
    #: Of the questions that pass: the share whose answer is shown, with its 95 % interval.
    precision: float
    precision_low: float
    precision_high: float
    #: Of the questions that have an answer: the share that passes.
    coverage: float
    calibrated_at: datetime
    is_stale: bool

    @classmethod
    def of(cls, collection: Collection) -> Self | None:
        """Show a collection's gate; None while it is not calibrated."""
        gate = collection.gate
        if gate is None:
            return None
        measured = gate.measured
        return cls(
            precision=measured.precision, precision_low=measured.precision_low,
            precision_high=measured.precision_high, coverage=measured.coverage,
            calibrated_at=gate.calibrated_at, is_stale=collection.is_stale,
        )  # fmt: skip


class ShownCollection(_Shown):
    name: str
    document_count: int
    passage_count: int
    created_at: datetime
    gate: ShownGate | None

    @classmethod
    def of(cls, collection: Collection) -> Self:
        """Show a collection."""
        return cls(
            name=collection.name, document_count=collection.document_count,
            passage_count=collection.passage_count, created_at=collection.created_at,
            gate=ShownGate.of(collection),
        )  # fmt: skip


class CollectionList(_Shown):
    collections: list[ShownCollection]


class ShownDocument(_Shown):
    uri: str
    title: str
    url: str | None
    version: int
    updated_at: datetime
    state: str
    error_message: str | None
    passage_count: int


class DocumentPage(_Shown):
    collection: ShownCollection
    documents: list[ShownDocument]
    #: What `--after` takes for the next page.
    next: str | None

    @classmethod
    def of(cls, collection: Collection, found: list[KnownDocument], limit: int) -> Self:
        """Show up to `limit` documents of a collection.

        One more that was found says that there is a next page.
        """
        page = found[:limit]
        return cls(
            collection=ShownCollection.of(collection),
            documents=[ShownDocument(**each._asdict()) for each in page],
            next=page[-1].uri if len(found) > limit else None,
        )


class ShownGap(_Shown):
    #: The latest of those that ask about the same, and how many they are.
    gap_id: str
    asked_count: int
    turn_id: str
    collection: str
    verdict: str
    question: str
    created_at: datetime


class GapList(_Shown):
    gaps: list[ShownGap]
    #: Groups beyond `--limit`.
    left_out: int

    @classmethod
    def of(cls, groups: list[Group], limit: int) -> Self:
        """Show the groups of gaps, each by its latest."""
        return cls(
            gaps=[
                ShownGap(
                    gap_id=show_id(Prefix.GAP, each.first.id), asked_count=len(each.gaps),
                    turn_id=show_id(Prefix.TURN, each.first.turn_id),
                    collection=each.first.collection, verdict=each.first.verdict,
                    question=each.first.question, created_at=each.first.created_at,
                )
                for each in groups[:limit]
            ],
            left_out=max(0, len(groups) - limit),
        )  # fmt: skip


class ShownErasure(_Shown):
    #: Who was forgotten is not kept.
    user_hash: str
    asked_at: datetime
    done_at: datetime | None


class ErasureList(_Shown):
    erasures: list[ShownErasure]

    @classmethod
    def of(cls, erasures: list[Erasure]) -> Self:
        """Show the erasures without their users."""
        return cls(
            erasures=[
                ShownErasure(user_hash=each.key_hash.hex(), asked_at=each.at, done_at=each.done_at)
                for each in erasures
            ]
        )


class ShownStudy(_Shown):
    name: str
    kind: str
    dimensions: list[str]
    item_count: int
    #: Ratings to give, and those given.
    wanted: int
    done: int
    created_at: datetime
    closed_at: datetime | None

    @classmethod
    def of(cls, study: Study, counts: Counts) -> Self:
        """Show a study with how far it is."""
        return cls(
            name=study.name, kind=study.kind, dimensions=list(study.dimensions),
            item_count=counts.items, wanted=counts.wanted, done=counts.done,
            created_at=study.created_at, closed_at=study.closed_at,
        )  # fmt: skip


class StudyList(_Shown):
    studies: list[ShownStudy]

"""Measure replies, group by group. Every interval comes from resampling whole conversations."""

from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.intervals import Figure, bootstrap_sums, ratio
from turnmill.compression.evaluate.text_scores import TextScores, score_texts, sums_of
from turnmill.producer.evaluation.meaning import Meaning, Meanings
from turnmill.producer.evaluation.said import By, Said, group_of
from turnmill.producer.evaluation.traits import is_refusal, length_of, repeated_share
from turnmill.schemas.errors import InvalidInput


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Group(_Part):
    """What was measured of the replies of one bot, model, tenant or period."""

    name: str
    replies: int
    conversations: int
    #: Words; each Han character is one.
    length: Figure
    #: Shares of the replies, 0 to 1.
    refusals: Figure
    empty: Figure
    #: The share of a reply's sequences of four words that it has said before, 0 to 1.
    repeats: Figure
    #: The share that `max_tokens` cut; None where nobody knows.
    cut: Figure | None = None
    #: Of the replies that have a reference.
    scores: TextScores | None = None
    #: Of the same, where an embedder compared them.
    meaning: Meaning | None = None


class Report(_Part):
    """Replies of one source, group by group."""

    title: str
    by: By
    groups: tuple[Group, ...]


def measure(
    title: str, said: Iterable[Said], by: By = "none", meanings: Meanings | None = None
) -> Report:
    """Measure replies by group, in the order of the groups' names. With `meanings`, replies and
    references are compared by an embedder, too.

    Raises:
        InvalidInput: there is no reply.
    """
    found: dict[str, list[Said]] = {}
    for each in said:
        found.setdefault(group_of(each, by), []).append(each)
    if not found:
        raise InvalidInput("There is no reply to measure.")
    groups = tuple(_group(name, found[name], meanings) for name in sorted(found))
    return Report(title=title, by=by, groups=groups)


def _group(name: str, said: Sequence[Said], meanings: Meanings | None) -> Group:
    known = [(each.text, each.reference, each.conversation) for each in said if each.reference]
    pairs = tuple(zip(*known, strict=True))
    return Group(
        name=name,
        replies=len(said),
        conversations=len({each.conversation for each in said}),
        length=_mean(said, lambda each: length_of(each.text)),
        refusals=_mean(said, lambda each: is_refusal(each.text)),
        empty=_mean(said, lambda each: not each.text.strip()),
        repeats=_mean(said, lambda each: repeated_share(each.text)),
        cut=_cut(said),
        scores=score_texts(*pairs) if pairs else None,
        meaning=meanings.measure(*pairs) if pairs and meanings else None,
    )


def _mean(said: Sequence[Said], read: Callable[[Said], float]) -> Figure:
    counts = [(float(read(each)), 1.0) for each in said]
    return bootstrap_sums(sums_of(counts, [each.conversation for each in said]), ratio)


def _cut(said: Sequence[Said]) -> Figure | None:
    known = [each for each in said if each.is_cut is not None]
    return _mean(known, lambda each: bool(each.is_cut)) if known else None

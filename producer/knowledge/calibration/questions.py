"""Questions to calibrate a gate with: made of a collection's passages, or labelled by people."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple
from uuid import UUID

from turnmill.schemas.postgres.database import Database
from turnmill.schemas.records.columns import text_of
from turnmill.schemas.records.table import read_table
from turnmill.schemas.store.knowledge.lexemes import is_paired, lexemes
from turnmill.schemas.store.knowledge.search import Passage

#: Passages that questions are made of; more make the figures no better, and take a search each.
MAX_PASSAGES = 400
#: So many questions are made where there are fewer passages, up to so many of each.
_MIN_QUESTIONS, _MAX_VARIANTS = 200, 5

#: How a sentence becomes a question. People ask in some of the words of the answer, the common
#: ones rather than those that stand in one passage alone, and in others beside them. Chosen on
#: XQuAD (https://arxiv.org/abs/1910.11856): docs/knowledge.md has the figures.
_KEEPS_RARE, _KEEPS_COMMON = 0.1, 0.5
_FOREIGN_SHARE = 0.3
_MAX_WORDS = 8
#: Of a sentence that a question is made of.
_MIN_WORDS = 6
#: How often the choice is made anew within Chinese text, where a word is several pairs long.
_RUN_ENDS = 0.35
#: Of its sentence, what an embedder reads. In chosen words alone it finds no meaning, and their
#: cosines are lower than those of people's questions; a whole sentence has higher ones.
_LEAST_MEANT, _MOST_MEANT = 0.3, 0.7

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；\n])")

#: By a hash: the same passages each time, from all of the collection.
_PASSAGES = """
SELECT p.document_id, p.heading, p.content FROM passages p
WHERE p.collection_id = %s ORDER BY hashint8extended(p.id, 0) LIMIT %s
"""

_FREQUENCIES = """
SELECT lexeme, df FROM collection_terms WHERE collection_id = %s AND lexeme = ANY(%s)
"""


class Source(NamedTuple):
    """A passage that questions are made of."""

    document_id: UUID
    heading: str
    content: str

    def has_made(self, passage: Passage) -> bool:
        """Whether a passage answers what was made of this one, as far as can be told."""
        is_same_section = (
            passage.document_id == self.document_id
            and bool(self.heading)
            and passage.heading == self.heading
        )
        return is_same_section or passage.content == self.content


class _Frequency(NamedTuple):
    lexeme: str
    df: int


class Made(NamedTuple):
    """A question, the passage it was made of, and that passage's number."""

    #: Its words.
    text: str
    #: What an embedder reads of it: text as people write it.
    meaning: str
    source: Source
    group: int


class Labelled(NamedTuple):
    """A question of people's."""

    text: str
    #: The document or the heading that answers it; empty: nothing in the collection does.
    answer: str


def is_named(answer: str, passage: Passage) -> bool:
    """Whether a passage is what a label names: of the document, or below the heading."""
    return answer in (passage.uri, passage.heading)


def make_questions(database: Database, collection_id: UUID) -> list[Made]:
    """Make questions of a collection's passages: the same ones for the same passages."""
    sources = database.fetch(Source, _PASSAGES, (collection_id, MAX_PASSAGES))
    words = {word for source in sources for word in lexemes(f"{source.heading} {source.content}")}
    rows = database.fetch(_Frequency, _FREQUENCIES, (collection_id, list(words)))
    maker = _Maker({row.lexeme: row.df for row in rows}, sources)
    variants = min(_MAX_VARIANTS, max(1, _MIN_QUESTIONS // max(len(sources), 1)))
    return [
        Made(*made, source, group)
        for group, source in enumerate(sources)
        for _ in range(variants)
        if (made := maker.ask(source))
    ]


def read_labelled(path: Path) -> list[Labelled]:
    """Read a table with the columns `question` and `answered_by`; the latter absent: no answer.

    Raises:
        InvalidInput: it cannot be read, or a row has no question.
    """
    rows = read_table(path, ("question",))
    return [
        Labelled(text_of(cells["question"]), text_of(cells.get("answered_by", "")))
        for _, cells in rows
    ]


class _Maker:
    """Makes questions out of sentences by leaving words out and putting others in."""

    def __init__(self, frequencies: Mapping[str, int], sources: Sequence[Source]) -> None:
        self._frequencies = frequencies
        self._words = [word for source in sources for word in {*lexemes(source.content)}]
        self._words.sort()
        # The same questions each time, and the same words with or without vectors.
        self._random, self._meant = Random(len(self._words)), Random(len(self._words))

    def ask(self, source: Source) -> tuple[str, str] | None:
        """The words of a question that the passage answers, and its meaning; None if it has no
        sentence to make one of.
        """
        own = source.heading.rpartition(" › ")[2]
        if own.rstrip().endswith(("?", "？")):
            # People ask in words of the answer, too.
            sentences = [f"{own} {source.content}"]
        else:
            found = map(str.strip, _SENTENCE_END.split(source.content))
            sentences = [each for each in found if len({*lexemes(each)}) >= _MIN_WORDS]
        if not sentences:
            return None
        sentence = self._random.choice(sentences)
        kept = self._some_of(lexemes(sentence))
        foreign = round(len(kept) * self._random.uniform(0, 2 * _FOREIGN_SHARE))
        words = [*_text(kept), *self._random.choices(self._words, k=foreign)]
        return " ".join(words), self._part_of(sentence)

    def _part_of(self, sentence: str) -> str:
        """A part of a sentence as it stands there."""
        units = list(sentence) if _is_unspaced(sentence) else sentence.split()
        share = self._meant.uniform(_LEAST_MEANT, _MOST_MEANT)
        size = max(1, round(len(units) * share))
        begin = self._meant.randrange(len(units) - size + 1)
        return ("" if _is_unspaced(sentence) else " ").join(units[begin : begin + size])

    def _some_of(self, sentence: Sequence[str]) -> list[tuple[int, str]]:
        """Words of a sentence with their places: of Chinese, runs of pairs."""
        kept = []
        keeps = False
        for at, word in enumerate(sentence):
            is_first = at == 0 or not is_paired(word) or not is_paired(sentence[at - 1])
            if is_first or self._random.random() < _RUN_ENDS:
                is_rare = self._frequencies.get(word, 0) <= 1
                keeps = self._random.random() < (_KEEPS_RARE if is_rare else _KEEPS_COMMON)
            if keeps:
                kept.append((at, word))
        if not kept:
            kept = [self._random.choice(list(enumerate(sentence)))]
        begin = self._random.randrange(max(len(kept) - _MAX_WORDS, 0) + 1)
        return kept[begin : begin + _MAX_WORDS]


def _text(kept: Sequence[tuple[int, str]]) -> Iterator[str]:
    """Words as text again: pairs that overlap are one run."""
    run, last = "", -1
    for at, word in kept:
        if run and at == last + 1 and is_paired(word) and word[0] == run[-1]:
            run += word[1:]
        else:
            yield from filter(None, [run])
            run = word
        last = at
    yield from filter(None, [run])


def _is_unspaced(text: str) -> bool:
    """Whether a text is mostly of a script that is written without spaces."""
    return sum(map(is_paired, text)) > len(text) / 3

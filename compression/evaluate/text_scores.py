"""BLEU, ROUGE and chrF of replies against references, with confidence intervals. Torch-free.

BLEU and ROUGE read Chinese by characters: BLEU with sacrebleu's tokenizer `zh` (each Han character
and each punctuation mark is a token, other words stay whole), ROUGE with the same rule. Text
without Han characters is read as sacrebleu's `13a` (mteval's) and as rouge-score's lower-cased
words. chrF needs no tokenizer.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.chrf import chrf, count_ngrams
from turnmill.compression.evaluate.intervals import Figure, bootstrap_sums, ratio, summed

Tokenizer = Literal["zh", "13a"]

#: CJK Unified Ideographs with extension A, and the compatibility block.
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN_OR_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")

#: Orders of BLEU's n-grams.
_ORDERS = 4


class TextScores(BaseModel):
    """The scores of one set of replies."""

    model_config = ConfigDict(frozen=True)

    #: Corpus BLEU, 0 to 100, by sacrebleu.
    bleu: Figure
    #: F-measures, 0 to 1, mean over replies.
    rouge1: Figure
    rouge_l: Figure
    #: Corpus chrF, 0 to 100. Reports of earlier releases have none.
    chrf: Figure | None = None
    replies: int
    #: What splits the text: sacrebleu's `zh` and characters for ROUGE, or `13a` and words.
    tokenizer: Tokenizer
    #: sacrebleu's signatures of BLEU and chrF: scores compare only where these are the same.
    signatures: dict[str, str] = {}


def score_texts(
    replies: Sequence[str],
    references: Sequence[str],
    groups: Sequence[Hashable] | None = None,
) -> TextScores:
    """Score replies against one reference each.

    With groups, one for each reply, the intervals come from resampling groups instead of replies.

    Raises:
        ValueError: there is no reply, or not as many references as replies.
    """
    if not replies or len(replies) != len(references):
        raise ValueError(f"{len(replies)} replies, {len(references)} references.")
    pairs = list(zip(replies, references, strict=True))
    keys: Sequence[Hashable] = range(len(replies)) if groups is None else groups
    tokenizer = choose_tokenizer(references)
    rouge = [_rouge(*pair) for pair in pairs]
    return TextScores(
        bleu=bootstrap_sums(sums_of(_bleu_counts(pairs, tokenizer), keys), _bleu),
        rouge1=bootstrap_sums(sums_of([(one, 1.0) for one, _ in rouge], keys), ratio),
        rouge_l=bootstrap_sums(sums_of([(longest, 1.0) for _, longest in rouge], keys), ratio),
        chrf=bootstrap_sums(sums_of([count_ngrams(*pair) for pair in pairs], keys), chrf),
        replies=len(replies),
        tokenizer=tokenizer,
        signatures=_signatures(tokenizer),
    )


def sums_of(counts: Sequence[Sequence[float]], groups: Sequence[Hashable]) -> list[Sequence[float]]:
    """Add up the counts of each group, for `bootstrap_sums`."""
    found: dict[Hashable, list[Sequence[float]]] = {}
    for row, group in zip(counts, groups, strict=True):
        found.setdefault(group, []).append(row)
    return [summed(rows) for rows in found.values()]


def choose_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Choose `zh` where at least a tenth of the letters are Han characters."""
    text = "".join(texts)
    letters = sum(character.isalpha() for character in text)
    return "zh" if len(re.findall(f"[{_HAN}]", text)) * 10 >= max(letters, 1) else "13a"


def split_words(text: str) -> list[str]:
    """Split into lower-case words; each Han character is a word."""
    return _HAN_OR_WORD.findall(text.lower())


def _bleu_counts(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[list[float]]:
    """Count each reply's n-grams that match, all of them, and both lengths."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenizer, effective_order=True)
    scores = [metric.sentence_score(reply, [reference]) for reply, reference in pairs]
    return [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores]


def _bleu(sums: Sequence[float]) -> float:
    """Compute corpus BLEU from counts that were added up."""
    from sacrebleu.metrics import BLEU

    score = BLEU.compute_bleu(
        correct=list(sums[:_ORDERS]),
        total=list(sums[_ORDERS : 2 * _ORDERS]),
        sys_len=sums[-2],
        ref_len=sums[-1],
        smooth_method="exp",
    )
    return float(score.score)


def _signatures(tokenizer: Tokenizer) -> dict[str, str]:
    """Return what sacrebleu says of its settings when it scores one reference a reply."""
    from sacrebleu.metrics import BLEU, CHRF

    found = {}
    for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
        metric.corpus_score(["a"], [["a"]])
        found[name] = str(metric.get_signature())
    return found


class _Words:
    """What rouge-score takes as a tokenizer; its own drops every Han character."""

    tokenize: Callable[[str], list[str]] = staticmethod(split_words)


def _rouge(reply: str, reference: str) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L, F-measure."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words()).score(reference, reply)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)

"""BLEU, ROUGE and chrF of replies against references, with confidence intervals. Torch-free.

Scripts that write no spaces between words are read by characters. BLEU reads Chinese with
sacrebleu's tokenizer `zh` (each Han character and each punctuation mark is a token, other words
stay whole), and Japanese, Thai, Lao, Tibetan, Burmese and Khmer with its tokenizer `char` (every
character is a token). ROUGE makes a token of each character of these scripts, and keeps other words
whole. Other text is read as sacrebleu's `13a` (mteval's) and as rouge-score's lower-cased words.
chrF needs no tokenizer.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.chrf import chrf, count_ngrams
from turnmill.compression.evaluate.intervals import Figure, bootstrap_sums, ratio, summed

Tokenizer = Literal["zh", "char", "13a"]

#: CJK Unified Ideographs with extension A, and the compatibility block.
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
#: Letters and marks of Hiragana and Katakana, Thai, Lao, Tibetan, Burmese and Khmer; neither digits
#: nor punctuation.
_SPACELESS = (
    r"\u3041-\u3096\u3099-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    r"\u0e01-\u0e3a\u0e40-\u0e4e"
    r"\u0e81-\u0ecd\u0edc-\u0edf"
    r"\u0f00\u0f40-\u0f84\u0f86-\u0fbc"
    r"\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a-\uaa7f"
    r"\u1780-\u17d3\u17d7\u17dc-\u17dd"
)
_CHARACTER_OR_WORD = re.compile(rf"[{_HAN}{_SPACELESS}]|[^\W{_HAN}{_SPACELESS}]+")

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
    #: What splits the text: sacrebleu's `zh` or `char` (characters for ROUGE), or `13a` (words).
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
    """Choose by what a tenth of the letters are at least.

    `char` for scripts without spaces other than Han, of which Japanese has both; `zh` for Han.
    """
    text = "".join(texts)
    fewest = max(sum(character.isalpha() for character in text), 1) / 10
    if len(re.findall(f"[{_SPACELESS}]", text)) >= fewest:
        return "char"
    return "zh" if len(re.findall(f"[{_HAN}]", text)) >= fewest else "13a"


def split_words(text: str) -> list[str]:
    """Split into lower-case words; each character of a script without spaces is a word."""
    return _CHARACTER_OR_WORD.findall(text.lower())


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
    """What rouge-score takes as a tokenizer; its own drops every character that is not ASCII."""

    tokenize: Callable[[str], list[str]] = staticmethod(split_words)


def _rouge(reply: str, reference: str) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L, F-measure."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words()).score(reference, reply)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)

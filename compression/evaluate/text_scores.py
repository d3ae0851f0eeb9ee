"""BLEU and ROUGE of replies against references, each with a confidence interval. Torch-free.

Both read Chinese by characters: BLEU with sacrebleu's tokenizer `zh` (each Han character and each
punctuation mark is a token, other words stay whole), ROUGE with the same rule. Text without Han
characters is read as sacrebleu's `13a` (mteval's) and as rouge-score's lower-cased words.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.intervals import Figure, bootstrap, mean

Tokenizer = Literal["zh", "13a"]

#: CJK Unified Ideographs with extension A, and the compatibility block.
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAN_OR_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")


class TextScores(BaseModel):
    """The scores of one set of replies."""

    model_config = ConfigDict(frozen=True)

    #: Corpus BLEU, 0 to 100, by sacrebleu.
    bleu: Figure
    #: F-measures, 0 to 1, mean over replies.
    rouge1: Figure
    rouge_l: Figure
    replies: int
    #: What splits the text: sacrebleu's `zh` and characters for ROUGE, or `13a` and words.
    tokenizer: Tokenizer


def score_texts(replies: Sequence[str], references: Sequence[str]) -> TextScores:
    """Score replies against one reference each.

    Raises:
        ValueError: there is no reply, or not as many references as replies.
    """
    if not replies or len(replies) != len(references):
        raise ValueError(f"{len(replies)} replies, {len(references)} references.")
    rouge = [_rouge(*pair) for pair in zip(replies, references, strict=True)]
    tokenizer = choose_tokenizer(references)
    return TextScores(
        bleu=_bleu(replies, references, tokenizer),
        rouge1=bootstrap([one for one, _ in rouge], mean),
        rouge_l=bootstrap([longest for _, longest in rouge], mean),
        replies=len(replies),
        tokenizer=tokenizer,
    )


def choose_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Choose `zh` where at least a tenth of the letters are Han characters."""
    text = "".join(texts)
    letters = sum(character.isalpha() for character in text)
    return "zh" if len(re.findall(f"[{_HAN}]", text)) * 10 >= max(letters, 1) else "13a"


def split_words(text: str) -> list[str]:
    """Split into lower-case words; each Han character is a word."""
    return _HAN_OR_WORD.findall(text.lower())


def _bleu(replies: Sequence[str], references: Sequence[str], tokenizer: Tokenizer) -> Figure:
    """Corpus BLEU: the n-gram counts of the drawn replies are summed, then combined."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenizer, effective_order=True)
    counts = [
        metric.sentence_score(reply, [reference])
        for reply, reference in zip(replies, references, strict=True)
    ]

    def combine(drawn: Sequence[BLEU]) -> float:
        score = BLEU.compute_bleu(
            correct=[sum(column) for column in zip(*(one.counts for one in drawn), strict=True)],
            total=[sum(column) for column in zip(*(one.totals for one in drawn), strict=True)],
            sys_len=sum(one.sys_len for one in drawn),
            ref_len=sum(one.ref_len for one in drawn),
            smooth_method="exp",
        )
        return float(score.score)

    return bootstrap(counts, combine)


class _Words:
    """What rouge-score takes as a tokenizer; its own drops every Han character."""

    tokenize: Callable[[str], list[str]] = staticmethod(split_words)


def _rouge(reply: str, reference: str) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L, F-measure."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words()).score(reference, reply)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)

"""What a reply shows by itself: its length, whether it refuses, how much it repeats.

None of this needs a reference. It tells that replies have changed, not that they are good.
"""

import re

from turnmill.compression.evaluate.text_scores import split_words

#: Words of the sequences whose repetition is counted: seq-rep-4 of arXiv 1908.04319.
_REPEATED_WORDS = 4

#: A refusal stands at the beginning of a reply.
_REFUSAL_CHARS = 200

#: In English and Chinese. Contractions are written out before the search.
_REFUSALS = re.compile(
    r"""
    \b(i\ am|we\ are)\ ((very|so|really|truly)\ )?(sorry|afraid)\b.{0,60}
        \b(cannot|can\ not|unable|not\ able|do\ not)\b
    | \bi\ (cannot|can\ not|am\ unable\ to|am\ not\ able\ to|will\ not)
        \ (help|assist|answer|provide|do\ that|fulfil)
    | \bi\ am\ (unable|not\ able)\ to\b
    | \bi\ do\ not\ (know|have\ (that|this|any|enough)\ information)\b
    | \bas\ an?\ (ai|language\ model|ai\ language\ model)\b
    | (抱歉|对不起|不好意思|很遗憾).{0,20}(无法|不能|没法|没有办法|不知道|不清楚|不了解)
    | 我(无法|不能|没法|没有办法)(回答|提供|帮助|协助|满足)
    | 我(不知道|不清楚)
    | 作为(一个|一名)?\s*(人工智能|AI|语言模型)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_CONTRACTIONS = (("’", "'"), ("can't", "cannot"), ("won't", "will not"), ("n't", " not"),
                 ("i'm", "i am"), ("we're", "we are"))  # fmt: skip


def is_refusal(text: str) -> bool:
    """Tell whether a reply begins by saying that it does not answer, in English or Chinese.

    A list of phrases decides: a share is comparable with that of other replies, and no more.
    """
    beginning = text[:_REFUSAL_CHARS].lower()
    for short, written_out in _CONTRACTIONS:
        beginning = beginning.replace(short, written_out)
    return _REFUSALS.search(beginning) is not None


def length_of(text: str) -> int:
    """Count words; each character of a script without spaces is one."""
    return len(split_words(text))


def repeated_share(text: str) -> float:
    """Return the share of a reply's sequences of four words that it has said before, 0 to 1."""
    words = split_words(text)
    total = len(words) - _REPEATED_WORDS + 1
    if total < 1:
        return 0.0
    different = {tuple(words[at : at + _REPEATED_WORDS]) for at in range(total)}
    return 1 - len(different) / total

"""Characters that nobody sees: they hide words from a reader that a model reads.

https://www.unicode.org/reports/tr36/, https://trojansource.codes (CVE-2021-42574)
"""

import re
import unicodedata
from functools import lru_cache

#: Letters of scripts whose words have joiners inside: Arabic, Syriac, and those of India.
_JOINING = "\u0600-\u08ff\u0900-\u0dff\ufb50-\ufdff\ufe70-\ufefc"
#: Pictures, with what changes how they look.
_PICTURES = "\u00a9\u00ae\u200d\u203c-\u3299\ufe0f\U0001f000-\U0001faff"

#: All that is shown as nothing. Tags (U+E0000) spell whole sentences.
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
_HIDDEN = re.compile(f"[{_INVISIBLE}]")
#: Stands for what could not be read; BERT's tokenizers drop it.
_REPLACED = "\ufffd"
_DIGIT = re.compile(r"(?![0-9])\d")

#: The flags of England, Scotland and Wales are a black flag and tags.
_FLAG = "\U0001f3f4[\U000e0030-\U000e007a]{2,6}\U000e007f"
_KEPT = (
    _FLAG,
    # One variation selector changes the sign before it; more in a row spell bytes.
    f"(?<=[^\\s{_INVISIBLE}])[\ufe00-\ufe0f\U000e0100-\U000e01ef](?![\ufe00-\ufe0f\U000e0100-\U000e01ef])",
    f"(?<=[{_JOINING}])[\u200c\u200d](?=[{_JOINING}])",
    f"(?<=[{_PICTURES}])\u200d(?=[{_PICTURES}])",
)
#: Controls too, but for tabs and ends of lines.
_STRIPPED = re.compile(
    f"(?P<kept>{'|'.join(_KEPT)})|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_INVISIBLE}]"
)


def visible(text: str) -> str:
    """Return the text without characters that nobody sees or that turn its order round.

    Joiners stay where words or pictures need them.
    """
    if text.isascii() and text.isprintable():
        return text
    return _STRIPPED.sub(lambda found: found["kept"] or "", text)


def folded(text: str) -> str:
    """Return the text as a tokenizer may read it that folds compatible forms (Unicode's NFKC) and
    drops what is not shown.
    """
    return _HIDDEN.sub("", unicodedata.normalize("NFKC", _HIDDEN.sub("", text)))


@lru_cache(maxsize=8192)
def as_read(char: str) -> str:
    """Return a character as the tokenizer may read it that alters the most: compatible forms
    decomposed (Unicode's NFKD), accents and all that is not shown dropped, and a plain space for
    every other but ends of lines.

    What a tokenizer reads that does less stands in this reading of the text, without a gap.
    """
    read = ""
    for each in unicodedata.normalize("NFKD", char):
        kind = unicodedata.category(each)
        if each in "\t\n\r":
            read += each
        elif kind[0] == "Z":
            read += " "
        elif kind != "Mn" and kind[0] != "C" and each not in _REPLACED and not _HIDDEN.match(each):
            read += each
    return read


def plainly_written(text: str) -> str:
    """Return the text as forms of addresses and numbers know it: folded, with the digits of ASCII
    in the place of those of other scripts.
    """
    return _DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), folded(text))

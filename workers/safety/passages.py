"""Passages as a prompt shows them: they cannot pose as what stands around them."""

import re

from turnmill.schemas.safety.invisible import visible
from turnmill.workers.engines.text.markers import WORD_JOINER


def inert(text: str, headings: tuple[str, ...] = ()) -> str:
    """Return the text without what nobody sees, and without lines that read like the prompt's own:
    its headings, and the number of another passage.
    """
    own = "|".join([r"\[(?=\d+\])", *map(re.escape, headings)])
    return re.sub(rf"(?m)^([^\S\n]*)({own})", _broken, visible(text))


def _broken(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2][:1]}{WORD_JOINER}{found[2][1:]}"

"""Pseudonyms: `<PHONE_1>` in the place of a telephone number, the same for the same number."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from turnmill.schemas.safety.findings import Finding

#: A pseudonym.
NAME = re.compile(r"<[A-Z]+(?:_[A-Z]+)*_\d+>")


class Names:
    """Pseudonyms in the order in which their values are met."""

    def __init__(self, find: Callable[[str], Sequence[Finding]], texts: Iterable[str] = ()) -> None:
        """`find`: what is to have a pseudonym. `texts`: names that one of these has already stand
        for themselves.
        """
        self._find = find
        self._taken = {name for text in texts for name in NAME.findall(text)}
        self._names: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def hide(self, text: str) -> str:
        """Return the text with pseudonyms for its values."""
        pieces, done = [], 0
        for found in self._find(text):
            value = text[found.start : found.end]
            pieces += [text[done : found.start], self._name(found.category, value)]
            done = found.end
        return "".join([*pieces, text[done:]])

    def reveal(self, text: str) -> str:
        """Return the text with the values of its pseudonyms."""
        return NAME.sub(lambda found: self._values.get(found[0], found[0]), text)

    def _name(self, category: str, value: str) -> str:
        while (category, value) not in self._names:
            self._counts[category] += 1
            name = f"<{category.upper()}_{self._counts[category]}>"
            if name not in self._taken:
                self._names[category, value] = name
                self._values[name] = value
        return self._names[category, value]

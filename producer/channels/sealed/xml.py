"""XML of one level, without what makes XML dangerous: a DTD, and with it entities of its own, is
refused, and so is more than any message has. It is read before its signature is checked."""

from xml.parsers import expat

from turnmill.schemas.content import storable
from turnmill.schemas.errors import InvalidInput

#: Events of WeCom have some hundred elements in some levels.
MAX_ELEMENTS, MAX_DEPTH = 2000, 32


def read_fields(body: bytes) -> dict[str, str]:
    """Read the texts of the elements within the root, as UTF-8. Raises `InvalidInput`."""
    try:
        return _Fields().read(body)
    except expat.ExpatError:
        raise _unreadable() from None


class _Fields:
    """What was read of one document."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        #: The names of the elements that are open.
        self._path: list[str] = []
        self._count = 0

    def read(self, body: bytes) -> dict[str, str]:
        parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._open
        parser.EndElementHandler = self._close
        parser.CharacterDataHandler = self._add
        parser.Parse(body, True)
        return {name: storable("".join(texts)) for name, texts in self._texts.items()}

    def _refuse(self, *_: object) -> None:
        raise _unreadable()

    def _open(self, name: str, _: object) -> None:
        self._path.append(name)
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._path) > MAX_DEPTH:
            raise _unreadable()
        if len(self._path) == 2:
            self._texts[name] = []

    def _close(self, _: str) -> None:
        self._path.pop()

    def _add(self, text: str) -> None:
        if len(self._path) == 2:
            self._texts[self._path[1]].append(text)


def _unreadable() -> InvalidInput:
    return InvalidInput("The body is not XML that can be read.")

"""Server-sent events out of raw bytes.

Lines end at `\\n` only (https://html.spec.whatwg.org/multipage/server-sent-events.html, which also
knows a lone `\\r` that no server sends). Readers of lines in HTTP libraries end them at U+2028 and
its like too, and so tear texts apart that contain one.
"""

from collections.abc import Iterator

from turnmill.schemas.errors import EngineUnavailable

#: A chunk of a reply takes some hundred bytes; what sends this much in a line is no such server.
MAX_EVENT_BYTES = 1 << 20


class EventReader:
    """Gives back the data of each event once it is complete, and nothing else."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def push(self, data: bytes) -> Iterator[bytes]:
        """Raises `EngineUnavailable` for an event of more than `MAX_EVENT_BYTES`."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._grow(part)
            line = bytes(self._line).removesuffix(b"\r")
            self._line.clear()
            yield from self._read(line)
        self._grow(rest)

    def _grow(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_EVENT_BYTES:
            raise EngineUnavailable("it sent more in one event than a chunk of a reply can be")
        self._line += part

    def _read(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
        elif not line:
            if self._data:
                yield b"\n".join(self._data)
            self._data = []
            self._size = 0
        elif not self._data:
            self._size = 0

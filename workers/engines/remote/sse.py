"""Server-sent events out of raw bytes.

Lines end at `\\n`, `\\r\\n` or `\\r` (https://html.spec.whatwg.org/multipage/server-sent-events.html),
and nowhere else: readers of lines in HTTP libraries end them at U+2028 and its like too, and so
tear texts apart that contain one.
"""

from collections.abc import Iterator

from turnmill.schemas.errors import EngineUnavailable

#: A chunk of a reply takes some hundred bytes; what sends this much in a line is no such server.
MAX_EVENT_BYTES = 1 << 20

DONE = b"[DONE]"


class EventReader:
    """Gives back the data of each event once it is complete, and nothing else.

    A line that holds a whole JSON object is an event by itself: some servers leave out the blank
    line after it.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        #: The last byte was a `\\r`, of which a `\\n` may still be the second half.
        self._was_return = False

    def push(self, data: bytes) -> Iterator[bytes]:
        """Raises `EngineUnavailable` for an event of more than `MAX_EVENT_BYTES`."""
        if self._was_return:
            data = data.removeprefix(b"\n")
        self._was_return = data.endswith(b"\r") or (self._was_return and not data)
        *ended, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for part in ended:
            self._grow(part)
            line = bytes(self._line)
            self._line.clear()
            yield from self._read(line)
        self._grow(rest)

    def end(self) -> Iterator[bytes]:
        """The last event, where the stream ends without a blank line."""
        for line in (bytes(self._line), b""):
            yield from self._read(line)

    def _grow(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_EVENT_BYTES:
            raise EngineUnavailable("it sent more in one event than a chunk of a reply can be")
        self._line += part

    def _read(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            data = line.removeprefix(b"data:").removeprefix(b" ")
            if not self._data and _is_whole(data):
                self._size = 0
                yield data
            else:
                self._data.append(data)
        elif not line:
            if self._data:
                yield b"\n".join(self._data)
            self._data = []
            self._size = 0
        elif not self._data:
            self._size = 0


def _is_whole(data: bytes) -> bool:
    data = data.strip()
    return data == DONE or (data.startswith(b"{") and data.endswith(b"}"))

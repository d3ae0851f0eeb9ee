"""Read `multipart/form-data` piece by piece: a file goes to the storage while it arrives.

RFC 7578, RFC 2046 section 5.1. No part is held in memory, and none is written to a temporary file
of the server's choice.
"""

from collections.abc import AsyncIterator
from email.message import Message
from email.parser import HeaderParser

from turnmill.schemas.errors import InvalidInput, TooLarge

#: The headers of one part, and a field that is no file.
MAX_HEADER_BYTES = 8 * 1024
MAX_FIELD_BYTES = 64 * 1024
MAX_PARTS = 32


class FormPart:
    """One part. Its content must be read before the next part is asked for."""

    def __init__(self, headers: Message, content: AsyncIterator[bytes]) -> None:
        self.name = str(headers.get_param("name", "", header="content-disposition"))
        #: None where it is no file.
        self.filename = headers.get_filename()
        self.content = content

    async def text(self) -> str:
        """Return the content of a field. Raises `InvalidInput`."""
        value = b""
        async for piece in self.content:
            value += piece
            if len(value) > MAX_FIELD_BYTES:
                raise InvalidInput(f"'{self.name[:80]}' is too long.", param=self.name[:80])
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"'{self.name[:80]}' is not UTF-8.", param=self.name[:80]) from None


class Form:
    """The parts of one body."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes], max_bytes: int) -> None:
        """`max_bytes`: of the whole body. Raises `InvalidInput`."""
        headers = Message()
        headers["content-type"] = content_type
        boundary = headers.get_param("boundary")
        if headers.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
            raise InvalidInput("The body must be multipart/form-data with a boundary.")
        self._delimiter = b"\r\n--" + boundary.encode()
        self._body = body
        self._left = max_bytes
        self._max_bytes = max_bytes
        # The first delimiter has no line before it.
        self._buffer = bytearray(b"\r\n")

    async def parts(self) -> AsyncIterator[FormPart]:
        """Yield the parts in order.

        Raises:
            InvalidInput: it is no form, or ends early.
            TooLarge: it is longer than it may be.
        """
        await _discard(self._before(self._delimiter))
        for _ in range(MAX_PARTS):
            if await self._is_last():
                return
            head = b""
            async for piece in self._before(b"\r\n\r\n"):
                head += piece
                if len(head) > MAX_HEADER_BYTES:
                    raise _malformed()
            content = self._before(self._delimiter)
            lines = head.decode("utf-8", "replace").lstrip("\r\n")
            yield FormPart(HeaderParser().parsestr(lines), content)
            await _discard(content)
        raise InvalidInput(f"The form has more than {MAX_PARTS} parts.")

    async def _before(self, end: bytes) -> AsyncIterator[bytes]:
        """Yield what stands before `end`, and take both off the buffer."""
        while (at := self._buffer.find(end)) < 0:
            # A part of `end` may have arrived already.
            if (whole := len(self._buffer) - len(end) + 1) > 0:
                yield bytes(self._buffer[:whole])
                del self._buffer[:whole]
            await self._receive()
        rest = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        if rest:
            yield rest

    async def _is_last(self) -> bool:
        """Whether the delimiter was the last one: then two hyphens follow, else a line break."""
        while len(self._buffer) < 2:
            await self._receive()
        return self._buffer.startswith(b"--")

    async def _receive(self) -> None:
        piece = await anext(self._body, b"")
        if not piece:
            raise _malformed()
        self._left -= len(piece)
        if self._left < 0:
            raise TooLarge(f"The body is larger than {self._max_bytes} bytes.")
        self._buffer += piece


async def _discard(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


def _malformed() -> InvalidInput:
    return InvalidInput("The form is malformed, or ends before its last boundary.")

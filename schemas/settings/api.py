"""Where the HTTP API listens, and what it bears."""

from pydantic import (
    Field,
)

from turnmill.schemas.settings.section import Origin, Section


class APISettings(Section):
    #: Address to listen on; `0.0.0.0` for all.
    host: str = "127.0.0.1"
    #: Port to listen on.
    port: int = Field(default=8000, ge=0, le=65535)
    #: Larger requests are refused with 413.
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    #: Seconds from the start of a plain call to its answer, at most: it then answers 504, and the
    #: turn goes on. Less than the clients' own timeout, which is 600 s for OpenAI's: a client that
    #: gives up first does not see the 504 and repeats the call as another turn.
    wait_s: float = Field(default=570.0, gt=0)
    #: Seconds that the workers of a bot's model may be away, as while they are restarted, before
    #: calls to the bot are answered with 503 `model_unavailable` at once.
    model_grace_s: float = Field(default=60.0, ge=0)
    #: How long a streamed call waits for the first chunk before it sends its headers.
    stream_headers_s: float = Field(default=10.0, gt=0)
    #: Origins whose web pages may call the API (CORS), `https://chat.example.com`, or `*` for all;
    #: none when left out. A page that calls it has an API key in it: give it one of its own.
    cors_origins: tuple[Origin, ...] = ()
    #: Connections a process holds, at most, and fewer where it may not open so many files. When all
    #: are taken, one that still owes a request is closed for a new one.
    max_connections: int = Field(default=8192, ge=1)
    #: Seconds in which a request's headers must arrive.
    header_timeout_s: float = Field(default=10.0, gt=0)
    #: Seconds in which a request's body must arrive, and one more for each 10,000 bytes of it.
    body_timeout_s: float = Field(default=20.0, gt=0)
    #: Seconds in which a client must read something of what was sent to it.
    send_timeout_s: float = Field(default=60.0, gt=0)
    #: Seconds that a connection is kept for its next request. Longer than clients keep theirs: it
    #: is the client that closes, and no request meets a connection that is just being closed.
    idle_timeout_s: int = Field(default=75, ge=1)

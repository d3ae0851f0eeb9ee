"""What a client says about a call beside its body, and how much body it may send."""

from dataclasses import dataclass
from uuid import UUID

from fastapi import Request
from starlette.exceptions import HTTPException

from turnmill.producer.api.errors import CONVERSATION_HEADER, TURN_HEADER
from turnmill.schemas.channels.policies import DoubleTexting
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, derived_id, parse_id

IDEMPOTENCY_HEADER = "Idempotency-Key"
TIMEOUT_HEADER = "X-Turnmill-Timeout"
CANCEL_HEADER = "X-Turnmill-Cancel-On-Disconnect"
DOUBLE_TEXTING_HEADER = "X-Turnmill-Double-Texting"

MAX_CONVERSATION_KEY = 200
MAX_IDEMPOTENCY_KEY = 255
#: A week: longer than anybody waits for a reply.
MAX_TIMEOUT_S = 7 * 24 * 3600


def _describe(name: str, meaning: str, **schema: object) -> dict[str, object]:
    return {"name": name, "in": "header", "description": meaning, "schema": schema}


_IDEMPOTENCY = _describe(
    IDEMPOTENCY_HEADER,
    "A call that is repeated with the same key is the same turn.",
    type="string",
    maxLength=MAX_IDEMPOTENCY_KEY,
)

#: The headers of a call, as OpenAPI describes them.
CALL_HEADERS = [
    _describe(
        CONVERSATION_HEADER,
        "Continue this conversation: a key of your own, or an id that Turnmill gave out.",
        type="string",
        maxLength=MAX_CONVERSATION_KEY,
    ),
    _IDEMPOTENCY,
    _describe(
        TIMEOUT_HEADER,
        "Seconds after which nobody wants the reply.",
        type="number",
        exclusiveMinimum=0,
        maximum=MAX_TIMEOUT_S,
    ),
    _describe(
        CANCEL_HEADER, "Cancel the turn when the client disconnects.", type="boolean", default=False
    ),
    _describe(
        DOUBLE_TEXTING_HEADER,
        "What becomes of the message while an earlier turn of the conversation is open. The "
        "bot's policy when left out.",
        type="string",
        enum=list(DoubleTexting),
    ),
]

#: Of a person's answer.
ANSWER_HEADERS = [_IDEMPOTENCY]

#: The headers of an answer that tells about a turn.
TURN_HEADERS = {
    TURN_HEADER: {"description": "The turn's id, `turn_…`.", "schema": {"type": "string"}},
    CONVERSATION_HEADER: {
        "description": "The conversation's id, `conv_…`.",
        "schema": {"type": "string"},
    },
}


@dataclass(frozen=True, slots=True)
class CallHeaders:
    #: The client's own name of a conversation, or an id that Turnmill gave out.
    conversation: str | None
    idempotency_key: str | None
    timeout_s: float | None
    cancels_on_disconnect: bool = False
    #: What becomes of the message while an earlier turn of the conversation is open.
    double_texting: DoubleTexting | None = None

    @property
    def given_conversation_id(self) -> UUID | None:
        """The conversation, where the client named it by our id. Raises `InvalidInput`."""
        if self.conversation is None or not self.conversation.startswith(Prefix.CONVERSATION + "_"):
            return None
        return parse_id(Prefix.CONVERSATION, self.conversation)

    def conversation_id(self, tenant_id: UUID, bot: str) -> UUID | None:
        """The conversation the turn belongs to; None for a fresh one. Raises `InvalidInput`."""
        if self.conversation is None:
            return None
        return self.given_conversation_id or derived_id(tenant_id, bot, self.conversation)


def read_headers(request: Request) -> CallHeaders:
    """Raises `InvalidInput`."""
    return CallHeaders(
        conversation=_text(request, CONVERSATION_HEADER, MAX_CONVERSATION_KEY),
        idempotency_key=read_idempotency_key(request),
        timeout_s=_timeout(request),
        cancels_on_disconnect=_flag(request, CANCEL_HEADER),
        double_texting=_double_texting(request),
    )


def read_idempotency_key(request: Request) -> str | None:
    """Raises `InvalidInput`."""
    return _text(request, IDEMPOTENCY_HEADER, MAX_IDEMPOTENCY_KEY)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused with 413 as soon as it is known to be too long, and with 415 if it is
    compressed: what it unpacks to has no bound."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPException(
            415, f"Content-Encoding '{encoding[:50]}' is not supported. Send the body uncompressed."
        )
    too_large = HTTPException(413, f"The body is larger than {limit} bytes.")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _text(request: Request, name: str, max_length: int) -> str | None:
    value = request.headers.get(name)
    if value is None:
        return None
    try:
        # The bytes arrive as Latin-1; clients that send more than ASCII mean UTF-8.
        text = value.encode("latin-1").decode()
    except UnicodeDecodeError:
        text = ""
    if not 0 < len(text) <= max_length or not text.isprintable():
        raise InvalidInput(f"{name} must be 1 to {max_length} printable characters.", param=name)
    return text


def _flag(request: Request, name: str) -> bool:
    value = request.headers.get(name, "false").lower()
    if value not in ("true", "false"):
        raise InvalidInput(f"{name} must be 'true' or 'false'.", param=name)
    return value == "true"


def _double_texting(request: Request) -> DoubleTexting | None:
    value = request.headers.get(DOUBLE_TEXTING_HEADER)
    try:
        return None if value is None else DoubleTexting(value.lower())
    except ValueError:
        raise InvalidInput(
            f"{DOUBLE_TEXTING_HEADER} must be one of {', '.join(DoubleTexting)}.",
            param=DOUBLE_TEXTING_HEADER,
        ) from None


def _timeout(request: Request) -> float | None:
    value = request.headers.get(TIMEOUT_HEADER)
    if value is None:
        return None
    try:
        timeout_s = float(value)
    except ValueError:
        timeout_s = 0
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidInput(
            f"{TIMEOUT_HEADER} must be a number of seconds, at most {MAX_TIMEOUT_S}.",
            param=TIMEOUT_HEADER,
        )
    return timeout_s

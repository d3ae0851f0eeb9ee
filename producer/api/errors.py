"""How every error looks over HTTP: the one place where a code becomes a status.

The body is OpenAI's `{"error": {"message", "type", "param", "code"}}`, so that its clients
raise the exception they should. An error about an accepted turn also says which one: the
turn stays readable under `/turns/{id}`, and a client that repeated the call without an
idempotency key would start a second one, so it is told not to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from uuid import UUID

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from turnmill.producer.api.pointers import pointer
from turnmill.schemas.errors import DatabaseUnavailable, TurnmillError
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.openai import ErrorBody, ErrorDetail
from turnmill.schemas.openai.mistakes import refused
from turnmill.schemas.turns import Turn, TurnState

TURN_HEADER = "X-Turnmill-Turn"
CONVERSATION_HEADER = "X-Turnmill-Conversation"

#: Seconds after which a client should ask again when a part of the system is away.
RETRY_AFTER_S = 2

#: code: status and OpenAI's type. What is not here is our fault: 500, server_error.
STATUSES: dict[str, tuple[int, str]] = {
    "invalid_input": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error"),
    "invalid_signature": (401, "authentication_error"),
    "insufficient_scope": (403, "permission_error"),
    "request_timeout": (408, "invalid_request_error"),
    "model_not_found": (404, "not_found_error"),
    "not_found": (404, "not_found_error"),
    "unknown_url": (404, "not_found_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "idempotency_conflict": (409, "conflict_error"),
    "already_settled": (409, "conflict_error"),
    "not_parked": (409, "conflict_error"),
    "later_turn_answered": (409, "conflict_error"),
    "later_turn_running": (409, "conflict_error"),
    "cancelled": (409, "conflict_error"),
    "conversation_busy": (409, "conflict_error"),
    "handed_off": (409, "conflict_error"),
    "not_handed_off": (409, "conflict_error"),
    "storage_full": (409, "conflict_error"),
    "body_too_large": (413, "invalid_request_error"),
    "unsupported_encoding": (415, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "unavailable": (503, "server_error"),
    "database_unavailable": (503, "server_error"),
    "broker_unavailable": (503, "server_error"),
    "storage_unavailable": (503, "server_error"),
    "engine_unavailable": (503, "server_error"),
    "model_unavailable": (503, "server_error"),
    "stopping": (503, "server_error"),
    "deadline_exceeded": (504, "timeout_error"),
    "wait_timeout": (504, "timeout_error"),
}

_HTTP_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_encoding",
}

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_ENDS = {
    TurnState.CANCELLED: ("cancelled", "The turn was cancelled."),
    TurnState.HANDED_OFF: ("handed_off", "A person answers this turn."),
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    """One error, ready to be shown."""

    code: str
    message: str
    param: str | None = None
    turn_id: UUID | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        return STATUSES.get(self.code, (500, ""))[0]

    @property
    def body(self) -> ErrorBody:
        kind = STATUSES.get(self.code, (0, "server_error"))[1]
        shown = None if self.turn_id is None else show_id(Prefix.TURN, self.turn_id)
        detail = ErrorDetail(
            message=self.message, type=kind, param=self.param, code=self.code, turn_id=shown
        )
        return ErrorBody(error=detail)

    def json(self) -> str:
        # `turn_id` is ours: it is left out where there is none, the other fields may be null.
        hidden = {"error": {"turn_id"}} if self.turn_id is None else None
        return self.body.model_dump_json(exclude=hidden)

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        response = _Rendered(self.json(), self.status)
        if self.code == "invalid_api_key":
            response.headers["WWW-Authenticate"] = "Bearer"
        if self.status == HTTPStatus.CONFLICT:
            # OpenAI's clients take any 409 for a lock that will be free soon.
            response.headers["x-should-retry"] = "false"
        if self.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        if self.turn_id is not None:
            response.headers["Location"] = f"/turns/{show_id(Prefix.TURN, self.turn_id)}"
        response.headers.update({**self.headers, **(headers or {})})
        return response


class _Rendered(JSONResponse):
    def render(self, content: str) -> bytes:
        return content.encode()


def problem_of(error: Exception) -> Problem:
    """Map an exception to the error that a client receives; unexpected ones show no detail."""
    match error:
        case DatabaseUnavailable():
            log.warning("database.disconnected", reason=error.message)
            return Problem(error.code, error.public_message)
        case TurnmillError():
            return Problem(error.code, error.public_message, error.param)
        case HTTPException():
            code = _HTTP_CODES.get(error.status_code, "invalid_input")
            return Problem(code, error.detail, headers=error.headers or {})
        case RequestValidationError():
            return problem_of(refused(error.errors()))
        case _:
            return Problem("internal_error", "Something went wrong in Turnmill.")


def problem_of_turn(turn: Turn) -> Problem:
    """Build the error for a turn that ended without a reply."""
    code, message = _ENDS.get(turn.state, (turn.error_code, turn.error_message))
    return Problem(
        code or "internal_error",
        message or "The turn ended without a reply.",
        param="messages" if code == "context_length_exceeded" else None,
        turn_id=turn.turn_id,
        headers={"x-should-retry": "false"},
    )


def wait_timeout(turn_id: UUID, wait_s: float, *, may_repeat: bool) -> Problem:
    message = f"No reply within {wait_s:g} s. The turn goes on: GET /turns/{{id}} has its reply."
    return _interrupted("wait_timeout", message, turn_id, may_repeat)


def stopping(turn_id: UUID, *, may_repeat: bool) -> Problem:
    message = "The server is stopping. The turn goes on: GET /turns/{id} has its reply."
    return _interrupted("stopping", message, turn_id, may_repeat)


def _interrupted(code: str, message: str, turn_id: UUID, may_repeat: bool) -> Problem:
    """The call ends and its turn does not: only an idempotency key makes repeating it safe."""
    shown = message.replace("{id}", show_id(Prefix.TURN, turn_id))
    headers = {"x-should-retry": "true" if may_repeat else "false"}
    return Problem(code, shown, turn_id=turn_id, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of a path; the router names those of its first route only."""
    found = [
        method
        for method in _METHODS
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    ]
    return ["HEAD", *found] if "GET" in found else found


def _explained(error: HTTPException, request: Request) -> HTTPException:
    """The router's own errors, in sentences."""
    shown = f"{request.method} {request.url.path[:200]}"
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return HTTPException(404, f"Unknown request URL: {shown}. {pointer(request.url.path)}")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_allowed_methods(request))
            message = f"{shown} is not supported; use {allowed}."
            return HTTPException(405, message, {"Allow": allowed})
    return error


def add_error_handlers(app: FastAPI) -> None:
    async def show(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            error = _explained(error, request)
        return problem_of(error).response()

    for kind in (TurnmillError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, show)

"""Errors of gRPC and of Triton as ours."""

import re

import grpc

from turnmill.schemas.errors import (
    EngineAway,
    EngineBrokeOff,
    EngineBusy,
    EngineFailure,
    EngineRefused,
    EngineUnavailable,
    TurnmillError,
)
from turnmill.workers.engines.triton.wire import decode_error

Code = grpc.StatusCode

#: What a code says of a server; all say that another one may do better.
_SENTENCES = {
    Code.UNAVAILABLE: "it cannot be reached, or has too much to do",
    Code.DEADLINE_EXCEEDED: "it did not answer in time",
    Code.RESOURCE_EXHAUSTED: "it has too much to do",
    Code.CANCELLED: "the stream was cancelled",
    Code.NOT_FOUND: "the model is not loaded",
    Code.UNIMPLEMENTED: "it is no Triton server",
    Code.UNAUTHENTICATED: "it wants another key (TURNMILL_ENGINE__ENDPOINT_KEY)",
    Code.PERMISSION_DENIED: "it wants another key (TURNMILL_ENGINE__ENDPOINT_KEY)",
}
#: What the codes mean that may concern every turn, or this one alone. `RESOURCE_EXHAUSTED` is a
#: full queue or a prompt larger than a message may be; `UNAVAILABLE` may be a server that died of
#: the turn.
_KINDS: dict[grpc.StatusCode, type[EngineUnavailable]] = {
    Code.RESOURCE_EXHAUSTED: EngineBusy,
    Code.NOT_FOUND: EngineRefused,
    Code.UNIMPLEMENTED: EngineRefused,
    Code.UNAUTHENTICATED: EngineRefused,
    Code.PERMISSION_DENIED: EngineRefused,
    Code.UNAVAILABLE: EngineBrokeOff,
}
#: gRPC's words where no connection was made. "Connection reset by peer" is one that broke.
_NEVER_REACHED = re.compile("failed to connect|connection refused|dns resolution", re.IGNORECASE)
_REFUSALS = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.FAILED_PRECONDITION)


def translated(error: grpc.Call) -> TurnmillError:
    """The error of a call as ours: the served engine's own, else by its code.

    Args:
        error: a `grpc.RpcError` that is a `grpc.Call` too, as all that calls raise are.
    """
    details = error.details() or ""
    if ours := decode_error(details):
        return ours
    code = error.code()
    if code in _REFUSALS:
        return EngineFailure(f"Triton refuses the turn: {details}")
    sentence = _SENTENCES.get(code, f"it failed ({code.name})")
    kind = _KINDS.get(code, EngineUnavailable)
    if code is Code.UNAVAILABLE and _NEVER_REACHED.search(details):
        kind = EngineAway
    return kind(f"{sentence}: {details}" if details else sentence)

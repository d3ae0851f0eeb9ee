"""Every error that Turnmill raises, in one tree.

    TurnmillError
    ├── TransientError              the same call may succeed later
    │   ├── DatabaseUnavailable
    │   │   └── DatabaseOutdated    migrations that this release needs have not run yet
    │   ├── BrokerUnavailable
    │   ├── EngineUnavailable
    │   │   ├── EngineAway          it takes no turns now; says nothing about the turn
    │   │   ├── EngineRefused       it turns this turn down and answers others
    │   │   ├── EngineBusy          the same, for having too much to do
    │   │   ├── EngineBrokeOff      it failed in the middle of the turn, and still serves others
    │   │   ├── EngineDied          its worker has to be started again
    │   │   └── Unanswered          a server of the engine said nothing in time
    │   ├── SearchUnavailable       the search server does not answer, or not with results
    │   ├── StorageUnavailable      the bytes of files cannot be read or written
    │   ├── ChannelUnavailable      the platform does not take the message right now
    │   ├── TooManyWaiting          the tenant has as many sounds waiting as it may
    │   ├── ConversationBusy        an earlier message is answered; the policy is to reject another
    │   └── LaterTurnRunning        the parked turn cannot be replayed right now
    └── PermanentError              trying again cannot help
        ├── SettingsError
        ├── InvalidInput            the caller's input is malformed or out of bounds
        │   ├── ContextOverflow
        │   └── UnsupportedMediaType
        ├── LimitExceeded           more memory or time than it may take
        ├── NotAuthenticated
        ├── BadSignature            a platform's request is not signed as it should be
        ├── NotPermitted            the API key lacks the scope that the call needs
        ├── UnknownBot
        ├── NotFound
        ├── Conflict
        ├── NotParked
        ├── BatchCancelled
        ├── HandedOff               a person answers the conversation
        ├── NotHandedOff            no person answers the conversation
        ├── LaterTurnAnswered       the parked turn cannot be replayed any more
        ├── DeliveryRefused         the platform will not take the message, however often it is sent
        ├── EngineFailure           the engine cannot answer this turn
        ├── ArtifactRefused         a compressed model is damaged, foreign, or misses its limits
        └── StackError              the embedded stack cannot start

Errors of the libraries underneath are translated where they enter (`database.py`, the
relay, each engine), so callers only ever meet these. `code` is stable: it is what
clients see, what the turns table keeps and what logs carry.
"""

import re


class TurnmillError(Exception):
    """Something went wrong in Turnmill."""

    code = "internal_error"
    #: Whether a tenant may read the message. It may not where the message can carry an address, a
    #: library's or a server's own words: these are for the log.
    is_public = True

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        #: A sentence for a person: what is wrong and what to do about it.
        self.message = message or (type(self).__doc__ or "").strip()
        #: The name of the input field at fault, where there is one.
        self.param = param
        super().__init__(self.message)

    @property
    def public_message(self) -> str:
        """The sentence for a tenant: the message, or what the error's code says of it."""
        if self.is_public:
            return self.message
        kind = next(each for each in type(self).__mro__ if "code" in vars(each))
        return (kind.__doc__ or "").strip()


class TransientError(TurnmillError):
    """A part of the system is unavailable; try again."""

    code = "unavailable"


class DatabaseUnavailable(TransientError):
    """The database is unavailable. Try again shortly."""

    code = "database_unavailable"
    is_public = False


class DatabaseOutdated(DatabaseUnavailable):
    """The database is older than this release needs."""


class BrokerUnavailable(TransientError):
    """The message broker cannot be reached."""

    code = "broker_unavailable"
    is_public = False


class ModelUnavailable(TransientError):
    """No worker serves the model."""

    code = "model_unavailable"


class EngineUnavailable(TransientError):
    """The engine cannot take the turn right now."""

    code = "engine_unavailable"
    is_public = False

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param)
        #: The pause that the server asks for, seconds; None: it asks for none.
        self.retry_after_s = retry_after_s


class EngineAway(EngineUnavailable):
    """The engine takes no turns: it cannot be reached, is loading, or has too much to do."""


class EngineRefused(EngineUnavailable):
    """The engine turns the turn down, and not for what its request looks like."""


class EngineBusy(EngineUnavailable):
    """The engine has no room for the turn."""


class EngineBrokeOff(EngineUnavailable):
    """The engine ran out of memory, or its connection broke, in the middle of the turn."""


class EngineDied(EngineUnavailable):
    """The engine has died; its worker has to be started again."""


class Unanswered(EngineUnavailable):
    """A server said nothing in time; it may only have more to do than it can."""


class SearchUnavailable(TransientError):
    """The search server does not answer, or not with results."""

    code = "search_unavailable"
    is_public = False

    def __init__(
        self, message: str, remedy: str = "", *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        #: What the operator can do.
        self.remedy = remedy
        #: What the server asks for, seconds.
        self.retry_after_s = retry_after_s


class StorageUnavailable(TransientError):
    """The storage of files is unavailable. Try again shortly."""

    code = "storage_unavailable"
    is_public = False

    def __init__(self, message: str = "", remedy: str = "") -> None:
        super().__init__(message)
        #: What the operator can do.
        self.remedy = remedy


class ChannelUnavailable(TransientError):
    """The platform does not take the message right now."""

    code = "channel_unavailable"
    is_public = False

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, is_doubtful: bool = False
    ) -> None:
        super().__init__(message)
        #: What the platform asks for, seconds: it is working, and counts our calls.
        self.retry_after_s = retry_after_s
        #: The message may have arrived all the same.
        self.is_doubtful = is_doubtful


class LaterTurnRunning(TransientError):
    """A later turn of the conversation is being answered."""

    code = "later_turn_running"


class TooManyWaiting(TransientError):
    """The tenant has as many sounds waiting as it may. Send this one again shortly."""

    code = "rate_limit_exceeded"


class ConversationBusy(TransientError):
    """An earlier message of the conversation is still being answered."""

    code = "conversation_busy"


class PermanentError(TurnmillError):
    """The call cannot succeed as it stands."""

    code = "failed"


class SettingsError(PermanentError):
    """The configuration is wrong."""

    code = "invalid_settings"


class InvalidInput(PermanentError):
    """The input is malformed."""

    code = "invalid_input"


class ContextOverflow(InvalidInput):
    """The prompt is longer than the model's context window."""

    code = "context_length_exceeded"


class TooLarge(InvalidInput):
    """The file is too large."""

    code = "body_too_large"


class UnsupportedMediaType(InvalidInput):
    """The content type of the request is not one that is read here."""

    code = "unsupported_media_type"


class LimitExceeded(PermanentError):
    """It takes more memory or time than it may."""

    code = "limit_exceeded"


class NotAuthenticated(PermanentError):
    """The API key is missing, wrong or revoked."""

    code = "invalid_api_key"


class BadSignature(PermanentError):
    """The signature of the request is missing, wrong or too old."""

    code = "invalid_signature"


class NotPermitted(PermanentError):
    """The API key may not be used for this call."""

    code = "insufficient_scope"


class UnknownBot(PermanentError):
    """There is no bot or model of this name."""

    code = "model_not_found"


class NotFound(PermanentError):
    """There is no such thing."""

    code = "not_found"


class Conflict(PermanentError):
    """The idempotency key was used before with a different body."""

    code = "idempotency_conflict"


class StorageFull(PermanentError):
    """The tenant's files take all the room that they may. Delete some: DELETE /v1/files/{id}"""

    code = "storage_full"


class NotParked(PermanentError):
    """The turn is not parked."""

    code = "not_parked"


class BatchCancelled(PermanentError):
    """The batch was cancelled."""

    code = "batch_cancelled"


class HandedOff(PermanentError):
    """A person answers the conversation."""

    code = "handed_off"


class NotHandedOff(PermanentError):
    """The bot answers the conversation, no person."""

    code = "not_handed_off"


class LaterTurnAnswered(PermanentError):
    """A later turn of the conversation has been answered since."""

    code = "later_turn_answered"


#: What a platform sends as its code may be any text. This much can be shown to a tenant.
_PLAIN_CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)


class DeliveryRefused(PermanentError):
    """The platform refuses the message for good."""

    code = "delivery_refused"

    def __init__(self, message: str, *, reason: str, told: str = "") -> None:
        """`message` is ours, and may name the code; where it has the platform's words or an
        address besides, `told` is the sentence without them.
        """
        super().__init__(message)
        #: The platform's own code, as `channel_not_found`.
        self.reason = reason
        self.is_public = _PLAIN_CODE.fullmatch(reason) is not None
        self._told = told

    @property
    def public_message(self) -> str:
        return self._told if self._told and self.is_public else super().public_message

    @property
    def public_code(self) -> str:
        """The platform's code, if it is one; or ours."""
        return self.reason if self.is_public else self.code


class EngineFailure(PermanentError):
    """The engine cannot answer this turn."""

    code = "engine_failure"
    is_public = False


class ArtifactRefused(PermanentError):
    """The compressed model is damaged or was not made by Turnmill."""

    code = "artifact_refused"
    is_public = False


class StackError(PermanentError):
    """The embedded stack cannot start."""

    code = "stack_error"

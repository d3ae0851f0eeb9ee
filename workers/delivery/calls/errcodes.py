"""Calls to the APIs of WeCom and WeChat, whose answers name an `errcode`: their errors as ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from turnmill.schemas.errors import ChannelUnavailable, DeliveryRefused
from turnmill.workers.delivery.calls.downloads import received
from turnmill.workers.delivery.calls.posting import Answer
from turnmill.workers.delivery.calls.rest import call, read_body
from turnmill.workers.delivery.calls.tokens import Token

#: "The system is busy".
_BUSY = -1
#: A limit that does not say how long to wait, seconds.
_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Codes:
    """What a platform's codes mean."""

    platform: str
    #: By which a call says that its token is good no more.
    bad_token: frozenset[int]
    #: Limits, and how long each is waited for, seconds.
    limits: Mapping[int, float]
    #: What to do about others.
    advice: Mapping[int, str]
    #: Where the rest is explained, as the end of a sentence.
    others: str


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """The call that lends an access token."""

    verb: str
    method: str
    query: Mapping[str, str]
    given: object = None


class TokenCalls:
    """One application's calls with an access token, shared by threads."""

    def __init__(self, codes: Codes, api_url: str, request: TokenRequest, timeout_s: float) -> None:
        self._codes = codes
        self._url = f"{api_url.rstrip('/')}/cgi-bin"
        self._request = request
        self._timeout_s = timeout_s
        self._token = Token(self._fetch_token)

    def post(self, method: str, given: Mapping[str, object]) -> dict[str, Any]:
        """Call a method with the application's token.

        Raises:
            ChannelUnavailable: later; `is_doubtful` where the call may have worked.
            DeliveryRefused: never; `reason` is the platform's code.
        """
        token = self._token.get()
        answer = self._call("POST", method, {"access_token": token}, given)
        if answer.get("errcode") in self._codes.bad_token:
            self._token.forget(token)
            answer = self._call("POST", method, {"access_token": self._token.get()}, given)
        return self._judged(method, answer)

    def fetch(self, method: str, query: Mapping[str, str], max_bytes: int) -> bytes:
        """Fetch a file with the application's token: it comes as it is, and a refusal as JSON with
        the same status. Raises as `post`."""
        token = self._token.get()
        answer = self._receive(method, {**query, "access_token": token}, max_bytes)
        if _code(answer) in self._codes.bad_token:
            self._token.forget(token)
            given = {**query, "access_token": self._token.get()}
            answer = self._receive(method, given, max_bytes)
        if _code(answer) is not None:
            self._judged(method, read_body(answer.body))
        elif answer.status != 200:
            raise ChannelUnavailable(f"{self._codes.platform} answered {answer.status}.")
        return answer.body

    def _receive(self, method: str, query: Mapping[str, str], max_bytes: int) -> Answer:
        url = f"{self._url}/{method}?{urlencode(query)}"
        return received(self._codes.platform, url, {}, self._timeout_s, max_bytes)

    def refused(self, method: str, code: int) -> DeliveryRefused:
        codes = self._codes
        advice = codes.advice.get(code, f"See {codes.others}.")
        return DeliveryRefused(
            f"{codes.platform} refused {method}: {code}. {advice}", reason=str(code)
        )

    def _fetch_token(self) -> tuple[str, float]:
        request = self._request
        answer = self._call(request.verb, request.method, request.query, request.given)
        answer = self._judged(request.method, answer)
        return str(answer["access_token"]), float(answer["expires_in"])

    def _call(
        self, verb: str, method: str, query: Mapping[str, str], given: object
    ) -> dict[str, Any]:
        url = f"{self._url}/{method}?{urlencode(query)}"
        reply = call(self._codes.platform, verb, url, given, {}, self._timeout_s)
        if reply.status == 429:
            raise self._limit(reply.retry_after_s or _RETRY_AFTER_S)
        if not reply.data:
            raise ChannelUnavailable(
                f"{self._codes.platform} answered {reply.status}.", is_doubtful=True
            )
        return reply.data

    def _judged(self, method: str, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer of a call that worked; WeChat's tokens come without a code."""
        codes, code = self._codes, answer.get("errcode", 0)
        if code == 0:
            return answer
        if code == _BUSY:
            raise ChannelUnavailable(f"{codes.platform} is busy.", is_doubtful=True)
        if code in codes.limits:
            raise self._limit(codes.limits[code])
        raise self.refused(method, code)

    def _limit(self, retry_after_s: float) -> ChannelUnavailable:
        return ChannelUnavailable(f"{self._codes.platform}'s limit", retry_after_s=retry_after_s)


def _code(answer: Answer) -> int | None:
    """The code of an answer that is no file. No image and no sound begins with a brace."""
    code = read_body(answer.body).get("errcode") if answer.body[:1] == b"{" else None
    return code if isinstance(code, int) else None

"""The keys that the Bot Framework signs its tokens with, fetched when one is wanted."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import jwt
import structlog

from turnmill.producer.channels.asking import Unanswered, ask
from turnmill.producer.channels.base import KeysNeeded
from turnmill.schemas.errors import TransientError

log = structlog.get_logger()

#: Keys are fetched anew after this time, seconds; Microsoft's own libraries do so too.
GOOD_S = 24 * 3600.0
#: Pauses between two fetches: for a key that nobody knows, and after nobody answered, seconds.
UNKNOWN_PAUSE_S, FAILED_PAUSE_S = 300.0, 5.0
#: Of each of the two calls. The Bot Framework waits 15 s for an answer to an activity.
TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True)
class Key:
    public: jwt.PyJWK
    #: The platforms (`channelId`) that this key may speak for.
    endorsements: frozenset[str]


class SigningKeys:
    """The keys of one metadata document. Thread-safe, and waits for nobody."""

    def __init__(self, openid_url: str) -> None:
        self._url = openid_url
        self._lock = threading.Lock()
        self._keys: Mapping[str, Key] = {}
        self._fetched_at = self._tried_at = -GOOD_S
        self._fetching: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="signing-keys")

    def find(self, key_id: str) -> Key | None:
        """Return a key; None: there is none of this id.

        Raises:
            KeysNeeded: they are being fetched.
            TransientError: they could not be fetched.
        """
        with self._lock:
            key, now = self._keys.get(key_id), time.monotonic()
            is_failed = self._tried_at > self._fetched_at
            pause_s = FAILED_PAUSE_S if is_failed else UNKNOWN_PAUSE_S
            is_wanted = key is None or now - self._fetched_at > GOOD_S
            if is_wanted and (self._fetching or now - self._tried_at > pause_s):
                raise KeysNeeded(self._begin())
        if key is None and is_failed:
            raise TransientError("The Bot Framework's signing keys cannot be fetched right now.")
        # Keys that are older than a day are better than none, while nobody has newer ones.
        return key

    def _begin(self) -> "Future[None]":
        if self._fetching is None:
            self._fetching = self._pool.submit(self._fetch)
        return self._fetching

    def _fetch(self) -> None:
        found: Mapping[str, Key] | None = None
        try:
            found = read_keys(self._url)
        except Unanswered as error:
            log.warning("channel.keys_missing", error=str(error))
        finally:
            with self._lock:
                self._tried_at, self._fetching = time.monotonic(), None
                if found is not None:
                    self._keys, self._fetched_at = found, self._tried_at


def read_keys(openid_url: str) -> dict[str, Key]:
    """Fetch the metadata, and the keys that it leads to. Raises `Unanswered`."""
    _, metadata = ask(openid_url, timeout_s=TIMEOUT_S)
    address = metadata.get("jwks_uri") if isinstance(metadata, dict) else None
    is_web = isinstance(address, str) and address.startswith(("https://", "http://"))
    if not isinstance(address, str) or not is_web:
        raise Unanswered("the metadata has no jwks_uri")
    if openid_url.startswith("https:") and not address.startswith("https:"):
        raise Unanswered("jwks_uri is not https")
    _, found = ask(address, timeout_s=TIMEOUT_S)
    rows = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise Unanswered("no keys at jwks_uri")
    return dict(pair for row in rows if (pair := _read(row)) is not None)


def _read(row: object) -> tuple[str, Key] | None:
    """None: no key that could verify a token here."""
    if not isinstance(row, dict):
        return None
    try:
        endorsements = frozenset(row.get("endorsements") or ())
        return str(row["kid"]), Key(jwt.PyJWK(row, algorithm="RS256"), endorsements)
    except (jwt.PyJWTError, AttributeError, KeyError, TypeError, ValueError):
        return None

"""What may leave for a search server, which passes it on to others."""

import re

import structlog

from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.safety.findings import masked
from turnmill.schemas.safety.invisible import plainly_written
from turnmill.schemas.safety.personal import mask_broadly, mask_urls
from turnmill.schemas.safety.policy import NO_SAFETY
from turnmill.workers.checks.registry import create_check
from turnmill.workers.safety.sifting import for_server
from turnmill.workers.turn.claim import Claim

log = structlog.get_logger()

#: Of a query: the end of a long message says what is wanted.
MAX_QUERY_CHARS = 300

#: What stands where something was masked, or a pseudonym; the rest of an address, too.
_MASK = re.compile(r"<url>\S*|<\w{1,40}>")
#: Numbers of parcels, bookings and passports, which have letters too.
_NUMBERED = re.compile(r"[A-Za-z0-9-]*\d{6,}[A-Za-z0-9-]*", re.ASCII)
_WORD = re.compile(r"\w")


def query_of(claim: Claim, question: str) -> str:
    """Return a question without what is nobody else's business; empty: nothing is left to ask.

    Whatever the bot's policy says, addresses, long numbers and secrets are left out. What it masks
    in messages, and what has pseudonyms for remote models, is left out too.
    """
    try:
        words = _MASK.sub(" ", _masked(claim, question)).split()
    except TurnmillError as error:  # a check cannot look
        log.error("search.query_unchecked", turn_id=claim.turn_id.hex, error=error.message)
        return ""
    text = " ".join(words)
    if len(text) > MAX_QUERY_CHARS:
        end = text[-MAX_QUERY_CHARS:]
        text = end.partition(" ")[2] or end
    return text if _WORD.search(text) else ""


def _masked(claim: Claim, text: str) -> str:
    text = plainly_written(for_server(claim.safety, claim.turn_id, text))
    # Before secrets, which would leave the rest of an address.
    text = mask_urls(text)
    text = masked(text, create_check("secrets", NO_SAFETY).examine(text))
    return _NUMBERED.sub(" ", mask_broadly(text))

"""`Retry-After`: seconds or a date (RFC 9110, 10.2.3); what is neither asks for nothing."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from turnmill.schemas.process.retry_after import retry_after_s

NOW = "Sun, 06 Nov 1994 08:49:00 GMT"


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("0.35", 0.35),
        ("9" * 400, float("inf")),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.0),
        ("Sun Nov  6 08:49:37 1994", 37.0),
        ("Sun, 06 Nov 1994 08:48:00 GMT", 0.0),
        ("", None),
        ("-1", None),
        (".", None),
        ("1e3", None),
        ("\u0661", None),
        ("soon", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("1 Jan 1 0:0:0 +9999999999999", None),
    ],
)
def test_a_pause_is_read_in_each_of_its_forms(asked: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": asked, "date": NOW}) == seconds


def test_an_answer_without_the_header_asks_for_nothing() -> None:
    assert retry_after_s({"date": NOW}) is None


@pytest.mark.parametrize("date", [{}, {"date": "today"}])
def test_a_date_is_held_against_our_clock_where_the_server_does_not_tell_its_own(
    date: dict[str, str],
) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    asked = retry_after_s({"retry-after": until, **date})
    assert asked is not None
    assert 90 < asked <= 100


def test_headers_of_httpx_are_read() -> None:
    assert retry_after_s(httpx.Headers({"Retry-After": "7"})) == 7.0

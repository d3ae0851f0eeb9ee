"""Logs: one JSON object a line for machines, and the libraries' lines look like ours."""

import json
import logging

import psycopg
import pytest
import sqlalchemy
import structlog
from pydantic import TypeAdapter

from turnmill.schemas.observability.logs import configure_logging
from turnmill.schemas.settings import LogSettings


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_an_event_is_one_json_object_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("turn.settled", turn_id="abc", text="two\nlines")
    (line,) = lines(capsys)
    assert line["event"] == "turn.settled"
    assert line["level"] == "info"
    assert (line["turn_id"], line["request_id"], line["text"]) == ("abc", "r1", "two\nlines")
    assert str(line["timestamp"]).endswith("Z")


def test_lines_of_libraries_come_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    logging.getLogger("some.library").warning("went %s", "wrong")
    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("went wrong", "warning")


def test_an_exception_is_a_field_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    try:
        raise ValueError("reason")
    except ValueError:
        structlog.get_logger().exception("attempt.crashed")
    (line,) = lines(capsys)
    assert "ValueError: reason" in str(line["exception"])


def test_an_exception_that_quotes_values_is_told_without_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PostgreSQL's details, SQLAlchemy's parameters and pydantic's input may be a reply."""
    configure_logging(LogSettings(format="json"))
    told = "secret"[::-1]  # the lines of the program, which a traceback shows, say it backwards
    for quoting in (
        lambda: int_of({"n": told}),
        lambda: raise_(psycopg.errors.InvalidTextRepresentation(f"DETAIL: {told}")),
        lambda: raise_(sqlalchemy.exc.DBAPIError("INSERT", {"text": told}, Exception())),
    ):
        try:
            try:
                quoting()
            except Exception as error:
                raise ValueError("what it led to") from error
        except ValueError:
            structlog.get_logger().exception("attempt.crashed")
    for line, name in zip(
        lines(capsys),
        ("ValidationError", "InvalidTextRepresentation (SQLSTATE 22P02)", "DBAPIError"),
        strict=True,
    ):
        assert told not in str(line)
        assert name in str(line["exception"])
        assert "ValueError: what it led to" in str(line["exception"])


def int_of(value: dict[str, str]) -> dict[str, int]:
    return TypeAdapter(dict[str, int]).validate_python(value)


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)],
)
def test_what_is_below_the_level_is_not_written(
    level: str, seen: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogSettings.model_validate({"format": "json", "level": level}))
    log = structlog.get_logger()
    log.debug("one")
    log.info("two")
    log.warning("three")
    assert len(lines(capsys)) == seen


def test_the_chatter_of_the_broker_libraries_is_kept_down(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogSettings(format="json", level="info"))
    for name in ("amqp", "kombu.connection", "celery.worker"):
        logging.getLogger(name).info("chatter")
    assert lines(capsys) == []


def test_people_get_lines_that_are_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="console"))
    structlog.get_logger().info("turn.settled", attempt=1)
    text = capsys.readouterr().err
    assert "turn.settled" in text
    assert not text.startswith("{")


def test_configuring_twice_does_not_write_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    configure_logging(LogSettings(format="json"))
    structlog.get_logger().info("once.only")
    assert len(lines(capsys)) == 1

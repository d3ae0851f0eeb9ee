"""Logging: structlog for everything, JSON where no person is watching.

Event names are past participles (`turn.settled`). Prompts, replies and secrets are never
logged; ids are.
"""

import logging
import sys
import traceback

import structlog
from structlog.typing import EventDict, ExcInfo

from turnmill.schemas.observability.masking import masked_within
from turnmill.schemas.settings import LogSettings

#: Libraries whose error messages quote the values that they were given.
_QUOTING = frozenset({"jinja2", "psycopg", "pydantic_core", "sqlalchemy"})

#: Loggers of libraries that say much below a warning; botocore, the headers with a session's token.
CHATTY = ("amqp", "botocore", "kombu", "celery", "httpx", "uvicorn.access", "urllib3")


def format_exception(exc_info: ExcInfo) -> str:
    """Format an exception and its causes, without messages that may quote a prompt or a reply."""
    return _format(exc_info[1])


def _format(error: BaseException) -> str:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{_format(cause)}\n\nThen:\n\n" if cause else ""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{before}Traceback (most recent call last):\n{frames}{_name(error)}"


def _name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__.partition(".")[0] not in _QUOTING:
        return "".join(traceback.format_exception_only(error)).rstrip()
    sqlstate = getattr(error, "sqlstate", None)
    return f"{kind.__module__}.{kind.__qualname__}" + (
        f" (SQLSTATE {sqlstate})" if sqlstate else ""
    )


def _mask(_: object, __: str, event: EventDict) -> EventDict:
    """Mask the passwords of URLs, wherever in a line they are."""
    return {key: masked_within(value) for key, value in event.items()}


def configure_logging(settings: LogSettings) -> None:
    """Send this process's logs, the libraries' included, to stderr. Called once, by a command."""
    is_console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if is_console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(format_exception),
                _mask,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))

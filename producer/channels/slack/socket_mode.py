"""Slack without a public address: events come over a WebSocket that we open.

https://docs.slack.dev/apis/events-api/using-socket-mode. Several processes may run: Slack gives
each event to one of them, and again to another if it is not acknowledged. slack_sdk's client keeps
the connection, and replaces it when Slack asks for that, every few hours.
"""

import json
import logging
import time

import structlog
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.client import BaseSocketModeClient
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

from turnmill.producer.channels.base import JSON, Answer, Parsed
from turnmill.producer.channels.pipeline import Pipeline
from turnmill.producer.channels.slack.channel import SlackChannel
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.content import storable, storable_json
from turnmill.schemas.errors import InvalidInput, SettingsError, TransientError, TurnmillError
from turnmill.schemas.observability.telemetry import Health, counter
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.postgres.links import Stop
from turnmill.schemas.process.network import takes_proxy
from turnmill.schemas.settings import Settings

log = structlog.get_logger()

EVENTS = counter(
    "channel_events",
    "What platforms sent, by channel and by what became of it.",
    "channel",
    "outcome",
)

#: Threads that receive, and connections to PostgreSQL at most.
CONCURRENCY = 10
#: Seconds between tries to open the first connection.
RECONNECT_S = 5.0
#: Seconds between pings: where five cannot be sent, the connection is opened again.
PING_S = 5.0


class SocketMode:
    """Receives for one channel until `stop`."""

    def __init__(self, settings: Settings, name: str, section: SlackSection) -> None:
        """Raises `SettingsError` where the channel has no app token."""
        if section.app_token is None:
            raise SettingsError(
                f"channels.{name} has no app_token. Make one with the scope connections:write: "
                "https://api.slack.com/apps ▸ Basic Information ▸ App-Level Tokens."
            )
        self._channel = SlackChannel(name, section)
        self._pipeline = Pipeline(name, section, lambda: self._channel)
        self._database = Database(settings.database)
        self._stopping = Stop()
        self._client = SocketModeClient(
            app_token=section.app_token.read().get_secret_value(),
            web_client=WebClient(base_url=section.api_url),
            logger=_quiet_logger(),
            concurrency=CONCURRENCY,
            ping_interval=PING_S,
        )
        if not takes_proxy(section.api_url):
            # The library does not look at NO_PROXY, and takes proxies for this machine, too.
            self._client.proxy = None
        self._client.socket_mode_request_listeners.append(self._receive)
        self.health = Health(unready=self._why_unready)

    def run(self) -> None:
        """Receive until `stop` is called from another thread or a signal handler.

        Raises:
            SettingsError: Slack refuses the app token.
        """
        try:
            while not self._stopping.is_set() and not self._connect():
                self._stopping.wait(RECONNECT_S)
            while not self._stopping.is_set():
                self._stopping.wait(1.0)
        finally:
            self._client.close()
            self._database.close()

    def stop(self) -> None:
        self._stopping.set()

    def _connect(self) -> bool:
        try:
            self._client.connect()
        except SlackApiError as error:
            code = str(error.response["error"])
            raise SettingsError(
                f"Slack refuses the app token of channels.{self._pipeline.name}: {code}. "
                f"Check it with: turnmill channels check {self._pipeline.name}"
            ) from None
        except (SlackClientError, OSError) as error:
            log.warning("socket.unavailable", error=type(error).__name__)
            return False
        log.info("socket.connected", channel=self._pipeline.name)
        return True

    def _why_unready(self) -> str | None:
        return None if self._client.is_connected() else "not connected to Slack"

    def _receive(self, client: BaseSocketModeClient, request: SocketModeRequest) -> None:
        """Commit what came, then acknowledge. What is not acknowledged, Slack sends again."""
        started = time.monotonic()
        try:
            parsed = self._parse(request)
            answer = parsed.answer
            if parsed.events:
                answer = self._pipeline.receive(self._database, parsed, _count)
            else:
                _count(self._pipeline.name, parsed.ignored)
            client.send_socket_mode_response(_response(request, answer))
        except (TurnmillError, SlackClientError) as error:
            level = log.warning if isinstance(error, TransientError) else log.error
            level("socket.event_failed", type=request.type, error=type(error).__name__)
            return
        duration_s = round(time.monotonic() - started, 4)
        log.info("socket.acknowledged", type=request.type, duration_s=duration_s)

    def _parse(self, request: SocketModeRequest) -> Parsed:
        try:
            payload = {storable(key): storable_json(each) for key, each in request.payload.items()}
        except RecursionError:
            raise InvalidInput("The payload is nested too deeply.") from None
        match request.type:
            case "events_api":
                return self._channel.parse_callback(payload)
            case "slash_commands":
                return self._channel.parse_command(payload)
            case "interactive":
                return self._channel.parse_interaction(payload)
        return Parsed()


def _count(channel: str, outcome: str) -> None:
    EVENTS.labels(channel, outcome).inc()


def _response(request: SocketModeRequest, answer: Answer) -> SocketModeResponse:
    has_answer = request.accepts_response_payload and answer.media_type == JSON
    return SocketModeResponse(
        request.envelope_id, payload=json.loads(answer.body) if has_answer else None
    )


def _quiet_logger() -> logging.Logger:
    """A logger of the client's own: below warnings it would tell what people write."""
    logger = logging.getLogger("turnmill.slack.socket_mode")
    logger.setLevel(logging.WARNING)
    return logger

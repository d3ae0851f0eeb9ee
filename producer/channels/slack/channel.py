"""Slack's requests: https://docs.slack.dev/apis/events-api and /interactivity."""

import json
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs

from pydantic import ValidationError

from turnmill.producer.channels.base import FORM, JSON, Answer, Parsed, Request, read_json
from turnmill.producer.channels.slack.events import read_actions, read_command, read_event
from turnmill.producer.channels.slack.payloads import BlockActions, EventCallback, SlashCommand
from turnmill.producer.converse import Received
from turnmill.schemas.channels.events import Event
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.channels.signatures import are_equal, is_in_window, sign_slack
from turnmill.schemas.content import storable
from turnmill.schemas.errors import BadSignature, InvalidInput

_SSL_CHECK = b"ssl_check=1"
#: Fields of a form that are read at most. A slash command has about fifteen.
_MAX_FIELDS = 100

_HELP = (
    "Write `{command} your question` and I will answer. `{command} stop` ends my current reply, "
    "`{command} reset` starts a new conversation."
)


class SlackChannel:
    max_body_bytes = 1024 * 1024
    media_types = frozenset({JSON, FORM})
    methods = frozenset({"POST"})

    def __init__(self, name: str, section: SlackSection) -> None:
        self._name = name
        reference = section.signing_secret
        self._secret = None if reference is None else reference.read()

    def verify(self, request: Request) -> None:
        """https://docs.slack.dev/authentication/verifying-requests-from-slack

        Slack's check of our certificate is let through as its own libraries do: nothing says that
        it is signed, and its answer is empty.
        """
        if _is_ssl_check(request):
            return
        if self._secret is None:
            raise BadSignature("This channel takes no requests: it has no signing_secret.")
        timestamp = request.headers.get("x-slack-request-timestamp", "")
        if not is_in_window(timestamp, request.arrived_at):
            raise BadSignature("The timestamp is missing, or more than 5 minutes off.")
        given = request.headers.get("x-slack-signature", "")
        if not are_equal(given, sign_slack(self._secret, timestamp, request.body)):
            raise BadSignature("The signature is missing or wrong. Compare the signing secret.")

    def parse(self, request: Request) -> Parsed:
        if _is_ssl_check(request):
            return Parsed(ignored="ssl_check")
        if request.media_type == JSON:
            return self.parse_callback(read_json(request.body))
        form = _read_form(request.body)
        if "payload" in form:
            return self.parse_interaction(read_json(form["payload"]))
        return self.parse_command(form)

    def parse_callback(self, payload: dict[str, object]) -> Parsed:
        """Read the body of the Events API, which is the same in socket mode."""
        if payload.get("type") == "url_verification":
            answer = json.dumps({"challenge": str(payload.get("challenge", ""))[:1000]})
            return Parsed(ignored="url_verification", answer=Answer(answer.encode(), JSON))
        return _parsed(lambda: read_event(self._name, EventCallback.model_validate(payload)))

    def parse_command(self, fields: Mapping[str, object]) -> Parsed:
        """Read a slash command."""
        parsed = _parsed(lambda: read_command(self._name, SlashCommand.model_validate(fields)))
        if parsed.ignored == "help":
            return Parsed(ignored="help", answer=_help(str(fields["command"])[:100]))
        if parsed.events and parsed.events[0].kind == "message":
            # Without it nobody but its author would see the question.
            shown = json.dumps({"response_type": "in_channel"})
            return Parsed(parsed.events, answer=Answer(shown.encode(), JSON))
        return parsed

    def parse_interaction(self, payload: dict[str, object]) -> Parsed:
        """Read what came of buttons; dialogs and shortcuts are not ours."""
        if payload.get("type") != "block_actions":
            return Parsed()
        try:
            pressed = BlockActions.model_validate(payload)
            return Parsed(tuple(read_actions(self._name, pressed)), ignored="action")
        except ValidationError:
            return Parsed()

    def acknowledge(self, parsed: Parsed, received: Sequence[Received]) -> Answer:
        return parsed.answer


def _parsed(read: Callable[[], Event | str]) -> Parsed:
    """An event, or the word that says why there is none. What we cannot read is unknown to us."""
    try:
        found = read()
    except ValidationError:
        return Parsed()
    return Parsed(ignored=found) if isinstance(found, str) else Parsed((found,))


def _is_ssl_check(request: Request) -> bool:
    return request.media_type == FORM and _SSL_CHECK in request.body.split(b"&")


def _help(command: str) -> Answer:
    text = _HELP.format(command=command)
    return Answer(json.dumps({"response_type": "ephemeral", "text": text}).encode(), JSON)


def _read_form(body: bytes) -> dict[str, str]:
    """Read the first value of each field. Raises `InvalidInput`."""
    try:
        form = parse_qs(body.decode(), max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise InvalidInput("The body is not a form that can be read.") from None
    return {key: storable(values[0]) for key, values in form.items()}

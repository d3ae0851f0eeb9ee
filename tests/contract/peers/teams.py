"""A Teams bot, for the contract suite."""

import asyncio
import json
from functools import cache
from typing import Any, ClassVar

from jwt import PyJWTError

from turnmill.infra.mocks.teams import activities
from turnmill.infra.mocks.teams.api import TeamsAPI
from turnmill.infra.mocks.teams.keys import another_key

from .base import Sent


@cache
def services() -> TeamsAPI:
    """Microsoft's, for all tests of this process."""
    return TeamsAPI().__enter__()


class TeamsPeer:
    variables: ClassVar = {"CONTRACT_SECRET": "made-up-client-secret"}
    max_body_bytes = 1024 * 1024
    escapes = False
    signs = frozenset({"time"})
    methods = "POST"
    is_json = True

    def __init__(self) -> None:
        self._chat = activities.Chat(services().service)
        self.section = f"""
            app_id = "{activities.APP_ID}"
            app_secret = {{ env = "CONTRACT_SECRET" }}
            api_url = "{services().url}"
        """

    def message(self, text: str, event_id: str | None = None) -> Any:
        return self._chat.message(text, **({} if event_id is None else {"id": event_id}))

    def attachment(self) -> Any:
        return self._chat.message("", attachments=[self._chat.file()])

    def own(self) -> Any:
        return self._chat.message("I answered.", **{"from": {"id": self._chat.bot}})

    def unknown(self) -> Any:
        return self._chat.activity("conversationUpdate", membersAdded=[{"id": self._chat.bot}])

    def encode(self, payload: Any) -> bytes:
        return json.dumps(payload).encode()

    def sign(self, body: bytes, *, at: float | None = None, secret: str | None = None) -> Sent:
        """A token of another time is one that was good for that moment alone."""
        times = {} if at is None else {"nbf": int(at), "exp": int(at)}
        said = activities.claims(self._chat.service, **times)
        signed = activities.sign(body, said, another_key() if secret else None)
        return Sent(signed.headers, signed.body)

    def is_valid(self, sent: Sent) -> bool:
        # Imported late: it takes a while.
        from botframework.connector.auth import ChannelValidation, SimpleCredentialProvider

        ChannelValidation.open_id_metadata_endpoint = (
            f"{services().url}/v1/.well-known/openidconfiguration"
        )
        service = json.loads(sent.body)["serviceUrl"]
        try:
            identity = asyncio.run(
                ChannelValidation.authenticate_channel_token_with_service_url(
                    sent.headers["Authorization"],
                    SimpleCredentialProvider(activities.APP_ID, ""),
                    service,
                    "msteams",
                )
            )
        except (PermissionError, PyJWTError):
            return False
        return bool(identity.is_authenticated)

"""Microsoft's services behind a Teams bot: where they are, and what they are told.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-authentication
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from turnmill.schemas.channels.sections.teams import TeamsSection

ISSUER = "https://api.botframework.com"
SCOPE = f"{ISSUER}/.default"
CHANNEL = "msteams"

#: Teams' connectors that tokens of this issuer are for. `trafficmanager.net` is anybody's, so its
#: host is named in full:
#: https://learn.microsoft.com/microsoftteams/platform/bots/how-to/conversations/send-proactive-messages
_HOSTS, _DOMAIN = frozenset({"smba.trafficmanager.net"}), ".teams.microsoft.com"
_HOST = re.compile(r"[a-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class Services:
    """The addresses for one section."""

    openid_url: str
    token_url: str
    #: The only host that replies are sent to, where the section names one.
    api_url: str | None

    @classmethod
    def of(cls, section: TeamsSection) -> "Services":
        own = section.api_url and section.api_url.rstrip("/")
        tenant = section.tenant_id or "botframework.com"
        return cls(
            f"{own or 'https://login.botframework.com'}/v1/.well-known/openidconfiguration",
            f"{own or 'https://login.microsoftonline.com'}/{tenant}/oauth2/v2.0/token",
            own,
        )

    def is_trusted(self, url: str) -> bool:
        """Whether replies, and a token with them, may be sent there."""
        try:
            scheme, host, port = _origin(url)
            if self.api_url is not None:
                return (scheme, host, port) == _origin(self.api_url)
        except ValueError:
            return False
        is_known = host in _HOSTS or (host.endswith(_DOMAIN) and bool(_HOST.fullmatch(host)))
        return scheme == "https" and port in (None, 443) and is_known


def chat_of(conversation: str) -> str:
    """The chat or channel of a conversation's id, which names a channel's thread too."""
    return conversation.partition(";")[0]


def message_key(conversation: str, activity: str) -> str:
    """Name a message within a channel of ours; Teams' id is unique within a chat."""
    return f"{chat_of(conversation)}/{activity}"


def _origin(url: str) -> tuple[str, str, int | None]:
    """Raises `ValueError`."""
    parts = urlsplit(url)
    if parts.username is not None:
        raise ValueError("an address with a user")
    return parts.scheme, parts.hostname or "", parts.port

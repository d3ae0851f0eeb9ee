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
#: Where people's OneDrive is, and where the connector has pictures: `v3/attachments/…/views/…`.
_DRIVE, _PICTURES = ".sharepoint.com", "/v3/attachments/"


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
        return self._is_on(url, _HOSTS, _DOMAIN)

    def is_picture(self, url: str) -> bool:
        """Whether it is a picture that the connector has, and hands out for the bot's token."""
        return self.is_trusted(url) and _PICTURES in urlsplit(url).path

    def is_file(self, url: str) -> bool:
        """Whether it is a file in OneDrive. Its address has a key in it, and gets no token."""
        return self._is_on(url, frozenset(), _DRIVE)

    def has(self, url: str) -> bool:
        """Whether it is anything that people sent, at an address that may be fetched."""
        return self.is_picture(url) or self.is_file(url)

    def _is_on(self, url: str, hosts: frozenset[str], domain: str) -> bool:
        """Whether an address is on one of these hosts or below this domain, by HTTPS; or where the
        section says that all of Microsoft's services are.
        """
        try:
            scheme, host, port = _origin(url)
            if self.api_url is not None:
                return (scheme, host, port) == _origin(self.api_url)
        except ValueError:
            return False
        is_known = host in hosts or (host.endswith(domain) and bool(_HOST.fullmatch(host)))
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

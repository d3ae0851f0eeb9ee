"""A message as Teams would send it to a bot."""

import secrets
from urllib.parse import urlsplit

from turnmill.infra.mocks.teams.activities import Chat, claims, encode, sign
from turnmill.infra.mocks.teams.api import TeamsAPI
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.teams import message_key
from turnmill.schemas.errors import SettingsError


def simulate_teams(section: TeamsSection, text: str, thread: str | None) -> Simulated:
    """Make a message in a direct chat; the thread is the chat's id.

    Microsoft's keys are Microsoft's alone: the mock stands in for its services at the section's
    `api_url`, while this process runs.
    """
    parts = urlsplit(section.api_url or "")
    if parts.hostname not in ("127.0.0.1", "localhost") or parts.port is None:
        raise SettingsError(
            "Only Microsoft can sign for Teams. To simulate, give the channel the address of a "
            'mock, and start Turnmill anew: api_url = "http://127.0.0.1:3979"'
        )
    try:
        mock = TeamsAPI(parts.port)
    except OSError:
        console.print(f"[dim]Something serves {section.api_url} already; it is taken as it is.[/]")
    else:
        mock.__enter__()
    if thread is None:
        thread = f"a:simulated-{secrets.token_hex(4)}"
        console.print(f"[dim]A new chat; continue it with --thread {thread}[/]")
    chat = Chat(f"{(section.api_url or '').rstrip('/')}/teams/", section.app_id, direct=thread)
    written = chat.message(text)
    said = claims(chat.service, section.app_id)
    return Simulated(sign(encode(written), said), message_key(thread, written["id"]))

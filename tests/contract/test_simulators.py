"""What `turnmill channels simulate` sends is what the channel reads, on every platform."""

import time
from pathlib import Path

import pytest

from turnmill.producer.channels.base import Request
from turnmill.producer.channels.registry import CHANNELS, create_channel
from turnmill.producer.cli.channels.simulators.registry import SIMULATORS, simulate
from turnmill.schemas.channels.configuration import load_configuration
from turnmill.schemas.channels.events import UserMessage
from turnmill.schemas.content import text_of

from .peers.registry import PEERS

#: Only the platform has the key that fits the public one of the peer.
OF_KEY_PAIRS = {"discord", "teams"}


def test_every_channel_can_be_simulated() -> None:
    assert set(SIMULATORS) == set(CHANNELS)


@pytest.mark.parametrize("kind", sorted(CHANNELS.keys() - OF_KEY_PAIRS))
def test_a_simulated_message_is_read_by_its_channel(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = PEERS[kind]()
    for name, value in peer.variables.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "turnmill.toml"
    file.write_text(f'[channels.peer]\nkind = "{kind}"\nbot = "b"\n{peer.section}')
    section = load_configuration(file).channels["peer"]
    made = simulate(section, "您好 👋", None)
    headers = {name.lower(): value for name, value in made.request.headers.items()}
    query = made.request.query
    request = Request("POST", headers, made.request.body, time.time(), query)
    channel = create_channel("peer", section)
    channel.verify(request)
    (event,) = channel.parse(request).events
    assert isinstance(event, UserMessage)
    assert (event.event_id, text_of(event.content)) == (made.event_id, "您好 👋")

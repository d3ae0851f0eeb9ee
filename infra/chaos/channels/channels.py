"""The channels of a run: two of one Slack workspace, which its own `turnmill.toml` configures.

One bot answers every message (`enqueue`), so that each answer is known beforehand. The other one
collects what arrives while it writes.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from turnmill.infra.chaos.channels.platform import MoodySlack
from turnmill.infra.mocks.slack.api import TOKEN

_SECRET, _TOKEN = "CHAOS_SLACK_SECRET", "CHAOS_SLACK_TOKEN"

_FILE = """\
[bots.{name}.policies]
double_texting = "{policy}"
quiet_s = 0.5

[channels.{name}]
kind = "slack"
bot = "{name}"
signing_secret = {{ env = "{secret}" }}
bot_token = {{ env = "{token}" }}
api_url = "{url}"
"""


@dataclass(frozen=True)
class Channels:
    """What processes of the run, and its client, need to know of them."""

    folder: Path
    #: Names of channels and bots begin with it.
    run_name: str
    platform: MoodySlack
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def enqueuing(self) -> str:
        return f"{self.run_name}-enqueue"

    @property
    def collecting(self) -> str:
        return f"{self.run_name}-collect"

    @property
    def names(self) -> list[str]:
        return [self.enqueuing, self.collecting]

    @property
    def path(self) -> Path:
        return self.folder / "turnmill.toml"

    @property
    def environment(self) -> dict[str, str]:
        return {"TURNMILL_CONFIG": str(self.path), _SECRET: self.secret, _TOKEN: TOKEN}

    def write(self) -> None:
        """Write the file."""
        sections = [
            _FILE.format(name=name, policy=policy, secret=_SECRET, token=_TOKEN, url=url)
            for url in [self.platform.url]
            for name, policy in ((self.enqueuing, "enqueue"), (self.collecting, "collect"))
        ]
        self.path.write_text("\n".join(sections))


@contextmanager
def open_channels(folder: Path, run_name: str, seed: int) -> Iterator[Channels]:
    """Start the platform and write the configuration."""
    with MoodySlack(seed, folder / "slack.jsonl") as platform:
        channels = Channels(folder, run_name, platform)
        channels.write()
        yield channels

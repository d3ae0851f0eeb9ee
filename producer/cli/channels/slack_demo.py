"""`turnmill demo --slack`: a thread in Slack, played against the mock of it.

The system is the real one: events come in signed, over HTTP, and the answers go out through the
delivery worker. Slack alone is made up, and so are Alice, who has questions, and Ben, who works
there.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live

from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.thread_view import ThreadView
from turnmill.schemas.errors import StackError

if TYPE_CHECKING:
    from turnmill.infra.mocks.sending import Signed
    from turnmill.infra.mocks.slack.api import SlackAPI
    from turnmill.infra.mocks.slack.messages import Posted

CHANNEL = "slack-demo"
SECRET_VARIABLE, TOKEN_VARIABLE = "SLACK_DEMO_SIGNING_SECRET", "SLACK_DEMO_BOT_TOKEN"

CONFIGURATION = """\
[bots.parcel-post]
instructions = \"\"\"
You are the assistant of Parcel Post, a parcel service. Answer in one or two friendly sentences.
\"\"\"
params = {{ temperature = 0.2, max_tokens = 80 }}

[channels.{channel}]
kind = "slack"
bot = "parcel-post"
signing_secret = {{ env = "{secret}" }}
bot_token = {{ env = "{token}" }}
api_url = "{url}"
"""

#: The longest that one answer is waited for: the first has the model's warm-up in it.
ANSWER_S = 120.0
#: People see a line appear before the next one is written.
PAUSE_S = 1.0
_POLL_S = 0.05

ALICE, BEN = "U0ALICE", "U0BEN"
NAMES = {ALICE: "Alice", BEN: "Ben (Parcel Post)"}

console = make_console()


@contextmanager
def demo_environment(folder: Path) -> Iterator[tuple["SlackAPI", dict[str, str]]]:
    """Start the mock; yields it and the environment of a stack whose one channel leads to it."""
    from turnmill.infra.mocks.slack.api import TOKEN, SlackAPI

    with SlackAPI() as api:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "slack-demo.toml"
        path.write_text(
            CONFIGURATION.format(
                channel=CHANNEL, secret=SECRET_VARIABLE, token=TOKEN_VARIABLE, url=api.url
            )
        )
        yield (
            api,
            {
                "TURNMILL_CONFIG": str(path),
                SECRET_VARIABLE: secrets.token_hex(16),
                TOKEN_VARIABLE: TOKEN,
            },
        )


def play(api: "SlackAPI", api_url: str, secret: str) -> None:
    """Play the scene, and show the thread as it grows.

    Raises `StackError` if an answer does not come, or an event is not taken.
    """
    view = ThreadView(api.board, NAMES, bot="Parcel Post (bot)")
    stage = _Stage(api, f"{api_url}/channels/{CHANNEL}", secret, view)
    if console.is_terminal:
        with Live(view, console=console, refresh_per_second=8, vertical_overflow="visible"):
            _scene(stage)
    else:
        _scene(stage)
    console.print(
        "\nOne thread: an answer that was streamed, three messages that became one turn, and a "
        "person who took over and gave back.\nYour own workspace: docs/channels/slack.md"
    )


def _scene(stage: "_Stage") -> None:
    stage.title("Alice asks; the answer is streamed into the thread")
    stage.write(ALICE, "Hello! My parcel is five days late. What can I do?", mentions=True)
    stage.wait_for_answer()
    stage.title("Three quick messages become one turn")
    for text in ("One more thing", "it is a birthday present", "so can I change the address?"):
        stage.write(ALICE, text)
    stage.wait_for_answer()
    stage.title("Alice asks for a person: the bot is silent from here on")
    stage.write(ALICE, "talk to a person")
    stage.wait_for_answer()
    stage.write(BEN, "Hi Alice, Ben here. I have changed it to Mill Lane 7.")
    stage.write(ALICE, "Thank you so much!")
    stage.title("Ben gives the conversation back")
    stage.press(BEN, "turnmill_resume")
    stage.wait_for_answer()
    stage.write(ALICE, "To which street does my parcel go now?")
    stage.wait_for_answer()


@dataclass
class _Stage:
    """What people do in the made-up workspace, and what they wait for."""

    api: "SlackAPI"
    url: str
    secret: str
    view: ThreadView
    _answers: int = 0

    def title(self, text: str) -> None:
        self.view.title(text)
        self._tell()

    def write(self, user: str, text: str, *, mentions: bool = False) -> None:
        """Post a message of a person, and send its event."""
        from turnmill.infra.mocks.slack.messages import Posted

        workspace = self.api.board.workspace
        event = workspace.mention(text) if mentions else workspace.message(text)
        event |= {"user": user, **self._thread()}
        channel = workspace.channel
        self.api.board.add(Posted(channel, event["ts"], text, event.get("thread_ts"), user=user))
        if self.view.root is None:
            self.view.root = (channel, event["ts"])
        self._send_callback(event)
        self._tell()
        time.sleep(PAUSE_S / 4)

    def press(self, user: str, action_id: str) -> None:
        """Press the button with this action that was shown last."""
        from turnmill.infra.mocks.slack.events import sign_interaction

        for message in reversed(self._bots()):
            for block in message.blocks:
                for action in block.get("elements", ()):
                    if action.get("action_id") == action_id:
                        pressed = self.api.board.workspace.pressed(
                            {**action, "block_id": block.get("block_id", "")},
                            ts=message.ts,
                            thread_ts=message.thread_ts,
                        )
                        pressed["user"] |= {"id": user, "username": "ben"}
                        self._send(sign_interaction(self.secret, pressed))
                        return
        raise StackError(f"No message shows the button {action_id}.")

    def wait_for_answer(self) -> None:
        """Wait until the bot has said one more thing, and has ended it."""
        self._answers += 1
        until = time.monotonic() + ANSWER_S
        while not self._is_answered():
            if time.monotonic() > until:
                raise StackError(
                    f"No answer came within {ANSWER_S:g} s. The logs say why: turnmill doctor"
                )
            time.sleep(_POLL_S)
        self._tell()
        time.sleep(PAUSE_S)

    def _tell(self) -> None:
        """Where nothing can be drawn anew: print what is new and complete."""
        if not console.is_terminal:
            for part in self.view.news():
                console.print(part, soft_wrap=True)

    def _is_answered(self) -> bool:
        said = self._bots()
        return len(said) >= self._answers and not any(each.is_streaming for each in said)

    def _bots(self) -> list["Posted"]:
        assert self.view.root is not None
        return [each for each in self.api.board.thread(*self.view.root) if each.user is None]

    def _thread(self) -> dict[str, str]:
        return {} if self.view.root is None else {"thread_ts": self.view.root[1]}

    def _send_callback(self, event: dict[str, object]) -> None:
        from turnmill.infra.mocks.slack.events import sign_callback

        self._send(sign_callback(self.secret, self.api.board.workspace.callback(event)))

    def _send(self, request: "Signed") -> None:
        from turnmill.infra.mocks.slack.events import deliver

        tries = deliver(self.url, request, retries_after_s=(0.0, 1.0, 2.0))
        if not tries[-1].is_accepted:
            raise StackError(f"The API answered an event with {tries[-1].status or 'nothing'}.")

"""A thread as people see it in their chat, drawn while it grows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from turnmill.infra.mocks.slack.messages import Board, Posted


class ThreadView:
    """Draws one thread of a made-up workspace."""

    def __init__(self, board: "Board", names: dict[str, str], *, bot: str) -> None:
        self._board = board
        self._names = names
        self._bot = bot
        #: Channel and timestamp of the thread's first message.
        self.root: tuple[str, str] | None = None
        #: Titles, by the number of messages that stood before them.
        self._titles: dict[int, str] = {}
        #: Messages that `news` has told of.
        self._told = 0

    def title(self, text: str) -> None:
        """Set a title above what comes next."""
        self._titles[len(self._messages())] = text

    def news(self) -> Iterator[RenderableType]:
        """What has been added since the last call: titles, and messages that are complete."""
        messages = self._messages()
        while self._told < len(messages) and not messages[self._told].is_streaming:
            yield from self._title(self._told)
            message = messages[self._told]
            shown = message.shown.replace("\n", "\n  ")
            yield Text.assemble(self._heading(message), ": ", shown)
            self._told += 1
        if self._told == len(messages):
            yield from self._title(self._told)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        messages = self._messages()
        for number, message in enumerate(messages):
            yield from self._title(number, again=True)
            yield from self._message(message)
        yield from self._title(len(messages), again=True)
        if self.root is not None and (status := self._board.status(*self.root)):
            yield Text(f"{self._bot} {status}", style="italic dim")

    def _title(self, number: int, *, again: bool = False) -> Iterator[RenderableType]:
        text = self._titles.get(number) if again else self._titles.pop(number, None)
        if text is not None:
            yield Text(f"\n── {text}", style="dim")

    def _message(self, message: "Posted") -> Iterator[RenderableType]:
        yield self._heading(message)
        yield Padding(Text(message.shown + ("▌" if message.is_streaming else "")), (0, 0, 0, 2))

    def _heading(self, message: "Posted") -> Text:
        if message.user is not None:
            return Text(self._names.get(message.user, message.user), style="bold cyan")
        return Text(self._bot, style="bold green")

    def _messages(self) -> list["Posted"]:
        return [] if self.root is None else self._board.thread(*self.root)

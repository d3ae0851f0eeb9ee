"""Buttons on platforms where a button is a label and a short value that comes back when pressed.

Telegram takes 64 bytes of value, Discord 100 characters, WhatsApp 256 characters; labels of 20
characters fit everywhere.
"""

import re
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from turnmill.schemas.channels.events import Address, Command, Rating
from turnmill.schemas.channels.policies import CommandName
from turnmill.schemas.ids import Prefix, show_id

_SCORES: dict[str, Literal[1, -1]] = {"good": 1, "bad": -1}
_COMMANDS = {"hand_off": CommandName.HAND_OFF, "resume": CommandName.RESUME}
_TURN = re.compile(rf"{Prefix.TURN}_[0-9a-f]{{32}}")


@dataclass(frozen=True, slots=True)
class Button:
    label: str
    value: str


RESUME = Button("Back to the bot", "resume")


def reply_buttons(turn_id: UUID) -> tuple[Button, ...]:
    """The buttons under a reply: whether it was good, and the way to a person."""
    turn = show_id(Prefix.TURN, turn_id)
    return (
        Button("👍", f"good:{turn}"),
        Button("👎", f"bad:{turn}"),
        Button("Talk to a person", "hand_off"),
    )


def read_button(
    value: str, *, event_id: str, address: Address, author: str
) -> Command | Rating | None:
    """Read what a pressed button brings; None: it is none of ours."""
    word, _, turn = value.partition(":")
    if (score := _SCORES.get(word)) is not None and _TURN.fullmatch(turn):
        return Rating(event_id=event_id, address=address, author=author, turn_id=turn, score=score)
    if (name := _COMMANDS.get(value)) is not None:
        return Command(event_id=event_id, address=address, author=author, name=name)
    return None

"""Seeded dialogue for benchmarks: plain English about parcels, no two chats alike."""

import random
from dataclasses import dataclass

from turnmill.schemas.turns import GenerationParams, Message, Role

_TEXT = """
the a my your parcel order invoice refund address courier label box driver door street account
email phone number morning evening week month yesterday tomorrow because before after when where
which that would could should please never always still already again arrived left lost found
broken open closed paid sent returned charged waited called asked small large heavy green late
early new old wrong right and but or so with without from to
"""
WORDS = _TEXT.split()

#: Tokens of a word of these in SmolLM2's vocabulary, about.
TOKENS_PER_WORD = 1.05

#: Tokens that the template and the system message add, about.
OVERHEAD = 16


@dataclass(frozen=True, slots=True)
class Chat:
    """One turn to answer."""

    messages: tuple[Message, ...]
    max_tokens: int

    @property
    def params(self) -> GenerationParams:
        return GenerationParams(temperature=0, top_p=1, max_tokens=self.max_tokens)


def mixed_chats(seed: int, count: int) -> list[Chat]:
    """Prompts of 30 to 400 tokens, replies of 16 to 128: those of customers, short and long.

    They differ from the first words on, so that reusing prefixes cannot flatter.
    """
    chance = random.Random(seed)
    return [
        Chat(
            (
                Message(role=Role.SYSTEM, content=_words(chance, 6)),
                Message(role=Role.USER, content=_text(chance, chance.randint(30, 400))),
            ),
            chance.randint(16, 128),
        )
        for _ in range(count)
    ]


def conversation(seed: int, turns: int) -> list[Chat]:
    """What the user says turn by turn: about 50 tokens each, for replies of 24."""
    chance = random.Random(seed)
    system = Message(role=Role.SYSTEM, content=_words(chance, 8))
    asked = [Message(role=Role.USER, content=_text(chance, 50)) for _ in range(turns)]
    return [
        Chat((system, message) if at == 0 else (message,), 24) for at, message in enumerate(asked)
    ]


def short_chats(seed: int, count: int, max_tokens: int) -> list[Chat]:
    """Prompts of about 50 tokens."""
    chance = random.Random(seed)
    return [
        Chat(
            (
                Message(role=Role.SYSTEM, content=_words(chance, 6)),
                Message(role=Role.USER, content=_text(chance, 50)),
            ),
            max_tokens,
        )
        for _ in range(count)
    ]


def _text(chance: random.Random, tokens: int) -> str:
    words = max(4, round((tokens - OVERHEAD) / TOKENS_PER_WORD))
    return f"{_words(chance, words)}. Tell me at length what I should do now."


def _words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count)).capitalize()

"""What a bot remembers of its users, by policy; and the words by which users speak about it."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from turnmill.schemas.content import refuse_nul

#: Where users of the API come from: the first part of their keys. Those of a channel have its name.
API = "api"

#: Characters of what a user may ask to be remembered in one message.
MAX_SENTENCE = 300

_STORABLE = AfterValidator(refuse_nul)
_Word = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), _STORABLE
]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=100), _STORABLE]
_Words = Annotated[tuple[_Word, ...], Field(max_length=32)]

#: "my shoe size is 43" is the fact "shoe size" with the value "43".
_NAMED = re.compile(
    r"(?:my\s+(.{1,60}?)\s+is\s+(.+)|我的(.{1,30}?)是(.+))", re.IGNORECASE | re.DOTALL
)


def user_key(source: str, author: str) -> str:
    """Name a user of a tenant: who somebody is on one platform says nothing about another one."""
    return f"{source}:{author}"


class MemoryPolicy(BaseModel):
    """Whether a bot remembers its users, and the words by which they speak about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Turns are told what is remembered of their user, and the words below count.
    on: bool = False
    #: `consent`: only of users whose memory is on. Another basis in law, which the owner of the bot
    #: declares here and answers for, lets it remember users who did not switch theirs off.
    basis: Literal["consent", "contract", "legitimate_interest"] = "consent"
    #: The bot that reads idle conversations and proposes facts; none when left out.
    extract_with: _Name | None = None
    #: A conversation is idle so many seconds after its last turn has ended.
    idle_s: int = Field(default=600, ge=0)
    #: Facts of these names need no confirmation.
    extract_keys: _Words = ()
    #: A message that begins with one of these words is remembered, ...
    remember_words: _Words = (
        "remember that",
        "remember:",
        "please remember",
        "please remember that",
        "记住",
        "请记住",
    )
    #: ... one that begins with one of these and names a fact lets it be forgotten, ...
    forget_words: _Words = ("forget", "please forget", "忘记", "忘掉", "请忘记")
    #: ... these, after a word of `forget_words`, let all of them be forgotten, ...
    everything_words: _Words = (
        "me",
        "everything",
        "everything about me",
        "all about me",
        "about me",
        "我",
        "一切",
        "关于我的一切",
        "我的一切",
    )
    #: ... one that begins with one of these and names a proposed fact confirms it, ...
    confirm_words: _Words = ("confirm", "确认")
    #: ... and a message that is nothing but one of these is answered with what is remembered.
    recall_words: _Words = (
        "what do you know about me",
        "what do you remember about me",
        "你知道我什么",
        "你记得我什么",
        "你了解我什么",
    )

    @classmethod
    def of(cls, stored: Mapping[str, object] | None) -> "MemoryPolicy":
        """Read what is kept. A newer release may have written what this one cannot read: then
        nobody is remembered.
        """
        if not stored:
            return NO_MEMORY
        known = {name: value for name, value in stored.items() if name in cls.model_fields}
        try:
            return cls.model_validate(known)
        except ValidationError:
            return cls()


#: Of a bot that says nothing of it.
NO_MEMORY = MemoryPolicy()


def rest_after(text: str, words: tuple[str, ...]) -> str | None:
    """Return what follows the longest of these words that the text begins with; None: none."""
    said = text.strip()
    if len(said) > MAX_SENTENCE:
        return None
    for word in sorted(words, key=len, reverse=True):
        rest = said[len(word) :]
        if said[: len(word)].casefold() != word.casefold():
            continue
        if rest and word[-1].isascii() and word[-1].isalnum() and rest[0].isalnum():
            continue  # "forgetful"
        return rest.strip(" \t\n:：,，").rstrip(".!。！") or None
    return None


def read_fact(sentence: str) -> tuple[str | None, str]:
    """Read the name of a fact and its value; without a name, the value is the sentence."""
    found = _NAMED.fullmatch(sentence)
    if found is None:
        return None, sentence
    name, value = (found[1], found[2]) if found[1] else (found[3], found[4])
    return name.strip().casefold(), value.strip()

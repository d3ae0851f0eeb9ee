"""What a bot does when its collection does not answer a question."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

_Text = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]

_HAN = re.compile(r"[\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3040-\u30ff]")


class Step(StrEnum):
    """One rung of the ladder. All but `SEARCH` reply without the model."""

    CLARIFY = "clarify"  # ask which of the nearest passages was meant; passed over without any
    #: Search the web, and let the model answer from what is found; passed over if nothing is.
    SEARCH = "search"
    UNCERTAIN = "uncertain"  # say so, and ask for what is missing
    HAND_OFF = "hand_off"  # a person is to answer


def _each_once(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    if len({*steps}) < len(steps):
        raise ValueError("each step once")
    return steps


class UnknownPolicy(BaseModel):
    """The ladder that a conversation climbs by one step with each question in a row that its bot's
    collection does not answer. An answer, or a person, takes it back to the ground.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Each once; the last one is repeated. Without any, the model answers on its own.
    steps: Annotated[tuple[Step, ...], AfterValidator(_each_once)] = ()
    #: What the bot says then. What is left out is said in Chinese where the question is Chinese,
    #: else in English.
    clarify: _Text | None = None
    uncertain: _Text | None = None
    handed_off: _Text | None = None

    @classmethod
    def of(cls, stored: Mapping[str, object]) -> Self:
        """Read what is stored, without what a newer release may have written."""
        known = {name: value for name, value in stored.items() if name in cls.model_fields}
        try:
            return cls.model_validate(known)
        except ValidationError:
            return cls()

    @property
    def without_people(self) -> Self:
        """The same where no person looks: the bot says that it is not sure instead."""
        steps = (Step.UNCERTAIN if each is Step.HAND_OFF else each for each in self.steps)
        return self.model_copy(update={"steps": tuple(dict.fromkeys(steps))})

    @property
    def without_search(self) -> Self:
        """The same where the web may not be searched: as if nothing was ever found there."""
        steps = tuple(each for each in self.steps if each is not Step.SEARCH)
        if self.steps and not steps:
            steps = (Step.UNCERTAIN,)
        return self.model_copy(update={"steps": steps})

    def text(self, step: Step, question: str) -> str:
        """What the bot says at a step; at `SEARCH` its model speaks."""
        own = {
            Step.CLARIFY: self.clarify,
            Step.UNCERTAIN: self.uncertain,
            Step.HAND_OFF: self.handed_off,
        }[step]
        return own or (_CHINESE if is_chinese(question) else _ENGLISH)[step]


_ENGLISH = {
    Step.CLARIFY: "I am not sure which of these you mean. Please choose one, or tell me more:",
    Step.UNCERTAIN: (
        "I am not sure: I found nothing about this in what I know. Could you tell me more, such as "
        "the product, the order or the exact words of the message that you see?"
    ),
    Step.HAND_OFF: "I cannot answer this. I have asked a person to take over: wait for them here.",
}
_CHINESE = {
    Step.CLARIFY: "我不确定您问的是哪一个。请选择一项，或者再说明一下：",
    Step.UNCERTAIN: (
        "这个问题我不确定：在我掌握的资料里没有找到答案。能再多告诉我一些吗？例如商品、订单，"
        "或者您看到的提示原文。"
    ),
    Step.HAND_OFF: "这个问题我回答不了，已经请人工接手，稍后会在这里回复您。",
}


def is_chinese(text: str) -> bool:
    """Whether a text is written in Chinese: Han characters, and none of Japanese's own."""
    return bool(_HAN.search(text)) and not _KANA.search(text)

"""What an engine can do, as one value: it declares it, its worker publishes it, accept asks for it.

A turn may need more than text in and text out. Accept refuses, by the name of the field that asks
for it, what no live worker of the model can do; a worker that claims a turn beyond its engine hands
it back for another one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from turnmill.schemas.content import MediaPart
from turnmill.schemas.formats.calls import arguments_format, demanded_tools
from turnmill.schemas.formats.response import ResponseFormat
from turnmill.schemas.formats.width import MOST_NEXT, width_of
from turnmill.schemas.turns import GenerationParams, Message, Role

#: What a reply may be made to be.
ALL_FORMATS = frozenset({"text", "json_object", "json_schema", "choice"})

#: What may be held against tokens that were said already.
ALL_PENALTIES = frozenset({"repetition_penalty", "frequency_penalty", "presence_penalty"})


class Capabilities(BaseModel):
    """What an engine can do. The default is what every engine of every release can.

    What a later release's worker declares besides is ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: It resumes after the text of an earlier attempt.
    continues: bool = False
    #: Kinds of parts that it reads: text, image, audio, file.
    accepts: frozenset[str] = frozenset({"text"})
    #: What a reply may be made to be: text, json_object, json_schema, choice.
    formats: frozenset[str] = frozenset({"text"})
    #: It holds replies to schemas where more than `MOST_NEXT` properties or options may come next.
    #: Of releases that do not say so, it is tried.
    wide_formats: bool = True
    #: It resumes such a reply too. Else a reply with a format restarts.
    continues_formats: bool = False
    #: It may answer with calls of tools that it is offered.
    tools: bool = False
    #: It can be made to call one of them, by `tool_choice`, with arguments of the tool's schema.
    tool_choice: bool = False
    #: It tells the log-probabilities of its tokens.
    logprobs: bool = False
    #: It makes tokens likelier or less likely, by their ids.
    logit_bias: bool = False
    #: Its worker puts passages into the prompt of one turn, whatever the engine.
    documents: bool = False
    #: Its worker transcribes sounds that are no part of a message.
    transcribes: bool = False
    #: It sends prompts to a server.
    remote: bool = False
    #: Penalties that it applies.
    penalties: frozenset[str] = frozenset({"repetition_penalty"})

    def lacks(self, needs: Iterable["Need"]) -> "Need | None":
        """The first need that is not met."""
        return next((need for need in needs if not self.meets(need)), None)

    def meets(self, need: "Need") -> bool:
        """Whether the engine can do it."""
        has = getattr(self, need.capability)
        return bool(has) if need.value is None else need.value in has


PLAIN = Capabilities()


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a turn asks of an engine."""

    #: Where the turn asks for it: `messages[0].content`, `tools`, …
    field: str
    #: The field of `Capabilities` that must be true, or have the value.
    capability: str
    value: str | None = None
    #: What is too much of it, for people.
    detail: str = ""

    @property
    def title(self) -> str:
        """For people."""
        if self.detail:
            return self.detail
        return self.capability if self.value is None else f"{self.capability}: {self.value}"


def needs_of(messages: Sequence[Message], params: GenerationParams) -> tuple[Need, ...]:
    """What a turn needs besides text in and text out."""
    return (*_of_messages(messages), *_of_params(params))


def _of_messages(messages: Sequence[Message]) -> Iterator[Need]:
    for number, message in enumerate(messages):
        if not isinstance(message.content, str):
            for kind in dict.fromkeys(
                # Nothing here asks a foreign address for anything.
                part.type if part.url is None else f"{part.type} by URL"
                for part in message.content
                if isinstance(part, MediaPart)
            ):
                yield Need(f"messages[{number}].content", "accepts", kind)
        if message.tool_calls:
            yield Need(f"messages[{number}].tool_calls", "tools")
        elif message.role is Role.TOOL:
            yield Need(f"messages[{number}].role", "tools")


def _of_demanded(params: GenerationParams) -> Iterator[Need]:
    demanded = {tool.name for tool in demanded_tools(params)}
    for number, tool in enumerate(params.tools):
        if tool.name in demanded:
            place = f"tools[{number}].function.parameters"
            yield from _of_width(arguments_format(tool), place, f"the arguments of '{tool.name}'")


def _of_width(format: ResponseFormat, place: str, what: str) -> Iterator[Need]:
    if width_of(format.schema_text or "") > MOST_NEXT:
        detail = (
            f"in {what} more than {MOST_NEXT} optional properties or options of 'anyOf' may come "
            "next, the most that its engine holds a reply to"
        )
        yield Need(place, "wide_formats", detail=detail)


def _of_params(params: GenerationParams) -> Iterator[Need]:
    if params.tools:
        yield Need("tools", "tools")
        if params.tool_choice not in (None, "auto"):
            yield Need("tool_choice", "tool_choice")
        yield from _of_demanded(params)
    if params.response_format is not None:
        yield Need("response_format", "formats", params.response_format.type)
        yield from _of_width(params.response_format, "response_format", "the schema")
    if params.logprobs is not None:
        yield Need("logprobs", "logprobs")
    if params.logit_bias:
        yield Need("logit_bias", "logit_bias")
    if params.documents:
        yield Need("documents", "documents")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(params, name):
            yield Need(name, "penalties", name)

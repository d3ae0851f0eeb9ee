"""`safety`: what a bot's replies may link to, and what is looked for in texts."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from turnmill.schemas.content import refuse_nul
from turnmill.schemas.safety.hosts import plain_host

#: `any` address; those of the turn's `sources` and of allowed hosts; `none` but allowed hosts.
Links = Literal["any", "sources", "none"]


def _read_host(value: str) -> str:
    """`shop.example`, `*.shop.example` for all hosts below it, `localhost:8080`."""
    wildcard = "*." if value.startswith("*.") else ""
    host = plain_host(value.removeprefix("*."))
    if host is None:
        raise ValueError("write a host without https:// and path, such as shop.example")
    return wildcard + host


Host = Annotated[str, StringConstraints(max_length=255), AfterValidator(_read_host)]

#: Brackets would make a link of it together with what stands beside it.
Placeholder = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100, pattern=r"^[^\[\]<>]+$"),
    AfterValidator(refuse_nul),
]


class Stage(StrEnum):
    """Where a text comes from."""

    INPUT = "input"  # a user
    PASSAGE = "passage"  # a document or a tool
    OUTPUT = "output"  # the model


class Action(StrEnum):
    """What becomes of a finding, the mildest first."""

    ALLOW = "allow"
    FLAG = "flag"  # logged and counted
    MASK = "mask"  # its category takes its place
    BLOCK = "block"  # the bot says its own text, and a passage is withheld


_RULE = re.compile(
    r"(?:(?:personal|secrets|words)(?:\.(?:input|passage|output))?:(?:allow|flag|mask|block)|"
    r"injection(?:\.(?:input|passage|output))?:(?:allow|flag))"
)


def _read_rule(value: str) -> str:
    if not _RULE.fullmatch(value):
        raise ValueError(
            "write CHECK:ACTION, or CHECK.STAGE:ACTION for one stage, such as personal:mask or "
            "secrets.output:block. Checks: personal, secrets, words, injection. Stages: input, "
            "passage, output. Actions: allow, flag, mask, block; of injection allow and flag"
        )
    return value


#: `CHECK:ACTION`, or for one stage alone `CHECK.STAGE:ACTION`. Phrases of injections are flagged
#: and no more: documents about them have them too.
Rule = Annotated[str, AfterValidator(_read_rule)]
_Word = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(refuse_nul),
]


def _read_region(value: str) -> str:
    if not re.fullmatch(r"[A-Z]{2}", value):
        raise ValueError("write a country's code of two capital letters (ISO 3166), such as US")
    return value


Region = Annotated[str, AfterValidator(_read_region)]


class Safety(BaseModel):
    """A bot's section `safety`. The default changes nothing, but for bots with a collection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Left out: `sources` for a bot with a collection, `any` for all others.
    links: Links | None = None
    #: Hosts that replies may always link to, and show images from.
    hosts: Annotated[tuple[Host, ...], Field(max_length=100)] = ()
    #: Stands where a link was removed.
    removed: Placeholder = "(link removed)"
    #: What is looked for, and what becomes of it; a rule for one stage goes before one for all.
    checks: Annotated[tuple[Rule, ...], Field(max_length=16)] = ()
    #: What the check `words` looks for.
    words: Annotated[tuple[_Word, ...], Field(max_length=1000)] = ()
    #: Countries whose telephone numbers are found without a country's code.
    regions: Annotated[tuple[Region, ...], Field(max_length=10)] = ()
    #: What servers read of personal data (`openai_http`, `triton`, `tfserving`): it, or pseudonyms.
    remote: Literal["plain", "pseudonyms"] = "plain"
    #: Whether messages are stored as they were sent, or with personal data masked. Then no model
    #: and no person reads it either.
    stored: Literal["plain", "masked"] = "plain"
    #: Whether a text counts as blocked or as allowed that a check fails at.
    fail: Literal["open", "closed"] = "closed"
    #: What the bot says in the place of a reply that is blocked, or to a message that is.
    blocked: Annotated[
        str, StringConstraints(min_length=1, max_length=1000), AfterValidator(refuse_nul)
    ] = "Sorry, I cannot talk about that."

    def actions(self, stage: Stage) -> dict[str, Action]:
        """What becomes of what each check finds in texts of a stage."""
        if not self.checks:
            return {}
        rules = dict(rule.split(":") for rule in self.checks)
        names = dict.fromkeys(name.partition(".")[0] for name in rules)
        found = {name: rules.get(f"{name}.{stage}", rules.get(name, "allow")) for name in names}
        return {name: Action(action) for name, action in found.items() if action != "allow"}

    def hides(self, other: "Safety") -> bool:
        """Whether all is kept from models and servers that `other` keeps of users' messages."""
        kept, wanted = self.hiding(), other.hiding()
        regions = set(other.regions) if {"personal", "remote"} & wanted else set()
        words = set(other.words) if "words" in wanted else set()
        return (
            wanted <= kept
            and regions <= set(self.regions)
            and words <= set(self.words)
            and not (wanted and self.fail == "open" and other.fail == "closed")
        )

    def hiding(self) -> set[str]:
        """The checks that hide something of users' messages, and `remote`."""
        actions = self.actions(Stage.INPUT).items()
        hiding = {name for name, action in actions if action in (Action.MASK, Action.BLOCK)}
        return hiding | ({"remote"} if self.remote == "pseudonyms" else set())

    @classmethod
    def of(cls, stored: Mapping[str, object] | None) -> "Safety":
        """Read what is stored, without what a newer release may have written."""
        if not stored:
            return NO_SAFETY
        return cls.model_validate({n: v for n, v in stored.items() if n in cls.model_fields})


#: Of a bot that says nothing of it.
NO_SAFETY = Safety()

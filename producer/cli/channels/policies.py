"""`--policy NAME=VALUE`: policies as the command line takes them."""

from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import ValidationError

from turnmill.schemas.channels.policies import SECTIONS, Policies
from turnmill.schemas.errors import InvalidInput

PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME=VALUE",
        help="A policy (repeatable): double_texting=collect, quiet_s=2, stop_words=stop,halt, "
        "texts.stopped=Stopped, memory.on=true, safety.links=sources. What is left "
        "out is the channel's default, or the API's.",
    ),
]


def read_policies(given: Sequence[str] | None) -> Policies:
    """Read `NAME=VALUE` pairs; several words are separated by commas. Raises `InvalidInput`."""
    values: dict[str, object] = {}
    sections: dict[str, dict[str, object]] = {}
    for pair in given or ():
        name, is_pair, value = pair.partition("=")
        first, _, text = name.strip().partition(".")
        if not is_pair or first not in Policies.model_fields:
            known = ", ".join(Policies.model_fields)
            raise InvalidInput(f"'{pair[:80]}' is no policy. Write NAME=VALUE; known: {known}.")
        section = SECTIONS.get(first)
        if section is None:
            values[first] = _value(first, value)
            continue
        if text not in section.model_fields:
            known = ", ".join(f"{first}.{each}" for each in section.model_fields)
            raise InvalidInput(f"'{name[:80]}' is no policy. Known: {known}.")
        default = section.model_fields[text].default
        sections.setdefault(first, {})[text] = _value(text, value, default)
    try:
        return Policies.model_validate(values | sections)
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False)
        lines = (
            f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}."
            for each in mistakes
        )
        raise InvalidInput(" ".join(lines), param="policy") from None


def _value(name: str, text: str, default: object = None) -> str | list[str]:
    return text.split(",") if name.endswith(("_words", "_keys")) or default == () else text

"""`--policy NAME=VALUE`: policies as the command line takes them."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from turnmill.schemas.channels.policies import Policies, Texts
from turnmill.schemas.errors import InvalidInput

PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME=VALUE",
        help="A policy (repeatable): double_texting=collect, quiet_s=2, stop_words=stop,halt, "
        "texts.stopped=Stopped. What is left out is the channel's default, or the API's.",
    ),
]


def read_policies(given: Sequence[str] | None) -> Policies:
    """Read `NAME=VALUE` pairs; several words are separated by commas. Raises `InvalidInput`."""
    values: dict[str, Any] = {}
    for pair in given or ():
        name, is_pair, value = pair.partition("=")
        first, _, text = name.strip().partition(".")
        if not is_pair or first not in Policies.model_fields:
            known = ", ".join(Policies.model_fields)
            raise InvalidInput(f"'{pair[:80]}' is no policy. Write NAME=VALUE; known: {known}.")
        if first == "texts":
            if text not in Texts.model_fields:
                known = ", ".join(f"texts.{each}" for each in Texts.model_fields)
                raise InvalidInput(f"'{name[:80]}' is no text of the bot. Known: {known}.")
            values.setdefault("texts", {})[text] = value
        else:
            values[first] = value.split(",") if first.endswith("_words") else value
    try:
        return Policies.model_validate(values)
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False)
        lines = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}." for each in mistakes)
        raise InvalidInput(" ".join(lines), param="policy") from None

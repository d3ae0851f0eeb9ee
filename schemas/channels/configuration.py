"""`turnmill.toml`: bots and channels, with secrets by reference."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.channels.sections import SECTIONS, ChannelSection, Name
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.turns import GenerationParams


class BotSection(BaseModel):
    """A bot, as `turnmill bots set` takes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The model of the engine's settings when left out.
    model: str | None = None
    instructions: str = ""
    params: GenerationParams = GenerationParams()
    policies: Policies = Policies()


class Configuration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: By the bot's name, in the tenant of the channels that use it.
    bots: dict[str, BotSection] = Field(default_factory=dict)
    channels: dict[Name, ChannelSection] = Field(default_factory=dict)


def load_configuration(path: Path | None) -> Configuration:
    """Read the file; without one there are no channels.

    Raises:
        SettingsError: it cannot be read, or is wrong; each mistake is a line.
    """
    if path is None:
        return Configuration()
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {type(error).__name__}.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no TOML: {error}.") from None
    try:
        return Configuration.model_validate(_with_kinds(content))
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_input=False)
        ]
        raise SettingsError("\n".join([f"{path} is wrong.", *lines])) from None


def _with_kinds(content: dict[str, Any]) -> dict[str, Any]:
    """Validate each channel as its kind."""
    channels = content.get("channels")
    if not isinstance(channels, dict):
        return content
    known: dict[str, Any] = {}
    for name, section in channels.items():
        kind = section.get("kind") if isinstance(section, dict) else None
        if kind not in SECTIONS:
            raise SettingsError(
                f"channels.{name}.kind is {kind!r}. Known kinds: {', '.join(SECTIONS)}."
            )
        known[name] = SECTIONS[kind].model_validate(section)
    return {**content, "channels": known}

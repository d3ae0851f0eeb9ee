"""`turnmill.toml`: bots and channels, with secrets by reference."""

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from turnmill.schemas.channels.memory import API
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.channels.sections.base import ChannelSection, Name
from turnmill.schemas.channels.sections.registry import SECTIONS
from turnmill.schemas.channels.toml_lines import KeyPath, TOMLLines
from turnmill.schemas.errors import InvalidInput, NotFound, SettingsError
from turnmill.schemas.formats.files import read_schema, schema_format
from turnmill.schemas.turns import GenerationParams


class BotSection(BaseModel):
    """A bot, as `turnmill bots save` takes it, and its policies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The model of the engine's settings when left out.
    model: str | None = None
    instructions: str = ""
    params: GenerationParams = GenerationParams()
    policies: Policies = Policies()
    #: A file with a JSON Schema, relative to this one: replies are held to it.
    schema_: Path | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _read_schema(self, info: ValidationInfo) -> Self:
        if self.schema_ is None:
            return self
        folder: Path = (info.context or {}).get("folder", Path())
        try:
            text = read_schema(folder / self.schema_.expanduser())
        except InvalidInput as error:
            raise ValueError(f"schema: {error.message}") from None
        params = self.params.model_copy(update={"response_format": schema_format(text)})
        return self.model_copy(update={"params": params})


class Configuration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: By the bot's name, in the tenants of the channels that use it, else in the commands' tenant.
    bots: dict[str, BotSection] = Field(default_factory=dict)
    channels: dict[Name, ChannelSection] = Field(default_factory=dict)


def load_configuration(path: Path | None) -> Configuration:
    """Read the file; without one there are no channels.

    Raises:
        SettingsError: it cannot be read, or is wrong; each mistake is a line, and names its line
            in the file. No value is shown: it may be a secret in the wrong place.
    """
    if path is None:
        return Configuration()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {_reason(error)}.") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from None
    return _validate(path, text, content)


def find_channel(path: Path | None, name: str) -> ChannelSection:
    """Read the file, and return one of its channels.

    Raises:
        NotFound: it has none of this name, or there is no file.
        SettingsError: as `load_configuration`.
    """
    channels = load_configuration(path).channels
    if name not in channels:
        known = ", ".join(channels) or "none"
        raise NotFound(f"There is no channel '{name[:100]}' in {path}. It has: {known}.")
    return channels[name]


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not UTF-8"


def _validate(path: Path, text: str, content: dict[str, object]) -> Configuration:
    mistakes: list[tuple[KeyPath, str]] = []
    channels = content.get("channels")
    if isinstance(channels, dict):
        known = dict(_channels(channels, path.absolute().parent, mistakes))
        content = {**content, "channels": known}
    try:
        folder = path.absolute().parent
        configuration = Configuration.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        mistakes += _mistakes(Configuration, (), error)
    if not mistakes:
        return configuration
    lines = TOMLLines(text)
    found = sorted((lines.line_of(at), ".".join(map(str, at)), what) for at, what in mistakes)
    shown = [f"  line {line}: {key}: {what}" for line, key, what in found]
    raise SettingsError("\n".join([f"{path} is wrong.", *shown]))


def _channels(
    channels: dict[str, object], folder: Path, mistakes: list[tuple[KeyPath, str]]
) -> Iterator[tuple[str, ChannelSection]]:
    """Validate each channel as its kind; the mistakes are added to those given."""
    for name, section in channels.items():
        at = ("channels", name)
        if name == API:
            mistakes.append((at, "has the name of the API, whose users it would share; rename it."))
        elif not isinstance(section, dict):
            mistakes.append((at, f"is a table: [channels.{name}]"))
        elif (kind := section.get("kind")) not in SECTIONS:
            hint = _meant(str(kind), SECTIONS) if kind else ""
            what = "is none of the known kinds" if kind else "is missing; it is one of"
            mistakes.append(((*at, "kind"), f"{what}: {', '.join(SECTIONS)}.{hint}"))
        else:
            try:
                yield name, SECTIONS[kind].model_validate(section, context={"folder": folder})
            except ValidationError as error:
                mistakes += _mistakes(SECTIONS[kind], at, error)


def _mistakes(
    model: type[BaseModel], at: tuple[str, ...], error: ValidationError
) -> Iterator[tuple[KeyPath, str]]:
    for each in error.errors(include_input=False, include_url=False):
        # `[key]` says that a key of a table, not its value, is at fault.
        loc = tuple(part for part in each["loc"] if part != "[key]")
        if each["type"] == "extra_forbidden":
            hint = _meant(str(loc[-1]), _fields(model, loc[:-1]))
            yield (*at, *loc), f"is not known.{hint}"
        else:
            yield (*at, *loc), each["msg"].removeprefix("Value error, ")


def _meant(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _fields(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """The names of the fields that a table may have, from the types of the tables around it."""
    for part in loc:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        found = next(_models(inner), None)
        if found is None:
            # The name of a bot: the table of bots has led to its model already.
            continue
        model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models in a type: `Policies`, `SecretReference | None`, `dict[str, BotSection]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)

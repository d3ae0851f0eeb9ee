"""Read the settings from the environment and the stack file, and refuse what is none."""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    Field,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.process.surroundings import (
    PREFIX,
    home,
    refuse_unreadable_credentials,
    without_strangers,
)
from turnmill.schemas.settings.api import APISettings
from turnmill.schemas.settings.broker import BrokerSettings
from turnmill.schemas.settings.database import DatabaseSettings
from turnmill.schemas.settings.delivery import DeliverySettings
from turnmill.schemas.settings.engine import EmbedderSettings, EngineSettings, SearchSettings
from turnmill.schemas.settings.flower import FlowerSettings
from turnmill.schemas.settings.log import LogSettings
from turnmill.schemas.settings.media import FilesSettings, MediaSettings, S3Settings
from turnmill.schemas.settings.memory import MemorySettings
from turnmill.schemas.settings.metrics import MetricsSettings
from turnmill.schemas.settings.relay import AffinitySettings, RelaySettings
from turnmill.schemas.settings.retention import RetentionSettings
from turnmill.schemas.settings.section import Section
from turnmill.schemas.settings.worker import WorkerSettings

DEFAULT_TENANT = "default"

#: Written by the embedded stack into its data folder, mode 0600.
STACK_FILE = "stack.json"

#: Bots and channels, written by the operator; read by `channels.configuration`.
CONFIG_FILE = "turnmill.toml"


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    #: The embedded stack's data, downloaded models, results.
    data: Path = Field(default_factory=lambda: default_data_dir())
    #: The file with bots and channels. Left out, it is `turnmill.toml` in the data folder, if there
    #: is one; without a file there are no channels.
    config: Path | None = None
    #: The tenant that commands act for; `--tenant` chooses another one.
    tenant: str = DEFAULT_TENANT
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    relay: RelaySettings = RelaySettings()
    affinity: AffinitySettings = AffinitySettings()
    worker: WorkerSettings = WorkerSettings()
    delivery: DeliverySettings = DeliverySettings()
    retention: RetentionSettings = RetentionSettings()
    files: FilesSettings = FilesSettings()
    s3: S3Settings = S3Settings()
    memory: MemorySettings = MemorySettings()
    media: MediaSettings = MediaSettings()
    engine: EngineSettings = EngineSettings()
    embedder: EmbedderSettings = EmbedderSettings()
    search: SearchSettings = SearchSettings()
    api: APISettings = APISettings()
    flower: FlowerSettings = FlowerSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls), StackFileSource(settings_cls)

    @property
    def models_dir(self) -> Path:
        return self.engine.models_dir or self.data / "models"

    @property
    def files_dir(self) -> Path:
        """The folder with the bytes of files."""
        return self.files.folder or self.data / "files"

    @property
    def ledger_path(self) -> Path:
        """The list of forgotten users outside the database."""
        return self.memory.ledger or self.data / "erasures.jsonl"

    @property
    def config_path(self) -> Path | None:
        """The file with bots and channels, or None if none is configured."""
        if self.config is not None:
            return self.config
        path = self.data / CONFIG_FILE
        return path if path.is_file() else None


class _Environment(EnvSettingsSource):
    """The environment without what nobody gave.

    A list that is not JSON is left to validation, which names its variable.
    """

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in without_strangers(os.environ).items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: object) -> object:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class StackFileSource(PydanticBaseSettingsSource):
    """Where a running embedded stack listens, so that `turnmill ask` needs no configuration."""

    def get_field_value(self, field: object, field_name: str) -> tuple[object, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, object]:
        data = self.current_state.get("data") or default_data_dir()
        path = Path(data) / STACK_FILE
        try:
            content: dict[str, object] = json.loads(path.read_text())["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return content


def default_data_dir() -> Path:
    """Root's data lies in /var/lib: PostgreSQL's account may not enter root's home.

    So does that of whoever has no home.
    """
    base = os.environ.get("XDG_DATA_HOME")
    if os.geteuid() == 0 or not (base or home()):
        return Path("/var/lib/turnmill")
    return Path(base or f"{home()}/.local/share") / "turnmill"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raises `SettingsError` with one line per mistake."""
    _refuse_unknown_variables(without_strangers(os.environ))
    refuse_unreadable_credentials()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [_describe(item) for item in error.errors()]
        raise SettingsError("\n".join(["The configuration is wrong.", *lines])) from None


def variable_names() -> Iterator[str]:
    """Every environment variable the settings know, sorted within its section."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from (f"{PREFIX}{name}__{inner}".upper() for inner in section.model_fields)
        else:
            yield f"{PREFIX}{name}".upper()


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = set(variable_names())
    unknown = sorted(v for v in environ if v.upper().startswith(PREFIX) and v.upper() not in known)
    if not unknown:
        return
    lines = []
    for variable in unknown:
        close = difflib.get_close_matches(variable.upper(), known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        lines.append(f"  {variable} is not a setting.{hint}")
    raise SettingsError("\n".join(["The configuration is wrong.", *lines]))


def _describe(item: ErrorDetails) -> str:
    """One mistake, without its value: it may be a password."""
    where = PREFIX + "__".join(str(part) for part in item["loc"]).upper()
    said = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("tuple_type", "list_type"):
        said = """write a list in JSON, as in '["one", "two"]'"""
    return f"  {where}: {said}"

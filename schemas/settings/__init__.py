"""Configuration: one typed class, read once when a process starts.

Sources, strongest first: arguments, `TURNMILL_*` environment variables (sections
nested with `__`, as in `TURNMILL_DATABASE__URL`), the file that a running embedded stack
leaves in its data folder, defaults. A misspelt variable is an error, not a default.
"""

from turnmill.schemas.settings.api import APISettings
from turnmill.schemas.settings.broker import BrokerSettings
from turnmill.schemas.settings.database import DatabaseSettings
from turnmill.schemas.settings.delivery import DeliverySettings
from turnmill.schemas.settings.engine import (
    DEFAULT_MODEL,
    EmbedderSettings,
    EngineSettings,
    SearchSettings,
)
from turnmill.schemas.settings.flower import FlowerSettings
from turnmill.schemas.settings.load import (
    CONFIG_FILE,
    DEFAULT_TENANT,
    STACK_FILE,
    Settings,
    load_settings,
    variable_names,
)
from turnmill.schemas.settings.log import LogSettings
from turnmill.schemas.settings.media import FilesSettings, MediaSettings, S3Settings
from turnmill.schemas.settings.retention import RetentionSettings
from turnmill.schemas.settings.section import SecretUrl, Section
from turnmill.schemas.settings.worker import WorkerSettings

__all__ = [
    "CONFIG_FILE",
    "DEFAULT_MODEL",
    "DEFAULT_TENANT",
    "STACK_FILE",
    "APISettings",
    "BrokerSettings",
    "DatabaseSettings",
    "DeliverySettings",
    "EmbedderSettings",
    "EngineSettings",
    "FilesSettings",
    "FlowerSettings",
    "LogSettings",
    "MediaSettings",
    "RetentionSettings",
    "S3Settings",
    "SearchSettings",
    "SecretUrl",
    "Section",
    "Settings",
    "WorkerSettings",
    "load_settings",
    "variable_names",
]

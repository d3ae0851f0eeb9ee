"""Channels by kind. A new one is one file and one line here, and the contract suite runs it."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from turnmill.producer.channels.base import Channel
from turnmill.producer.channels.pipeline import Pipeline
from turnmill.schemas.channels.configuration import Configuration
from turnmill.schemas.channels.sections import ChannelSection
from turnmill.schemas.errors import SettingsError

#: kind → "module:Class", imported only where it is configured.
CHANNELS = {
    "feishu": "turnmill.producer.channels.feishu.channel:FeishuChannel",
    "slack": "turnmill.producer.channels.slack.channel:SlackChannel",
    "telegram": "turnmill.producer.channels.telegram.channel:TelegramChannel",
    "webhook": "turnmill.producer.channels.webhook:WebhookChannel",
    "whatsapp": "turnmill.producer.channels.whatsapp:WhatsAppChannel",
}


def create_channel(name: str, section: ChannelSection) -> Channel:
    """Make the channel of a section.

    Raises:
        SettingsError: its library is not installed, or a secret is missing.
    """
    module, _, attribute = CHANNELS[section.kind].partition(":")
    try:
        kind: Any = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("turnmill"):
            raise
        raise SettingsError(
            f"Channel {name!r} needs {error.name}: pip install 'turnmill[{section.kind}]'"
        ) from None
    channel: Channel = kind(name, section)
    return channel


def create_pipelines(configuration: Configuration) -> Iterator[Pipeline]:
    """One pipeline for each configured channel. Raises `SettingsError`."""
    for name, section in configuration.channels.items():
        yield Pipeline(name, section, create_channel(name, section))

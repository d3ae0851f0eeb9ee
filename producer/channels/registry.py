"""Channels by kind. A new one is one file and one line here, and the contract suite runs it."""

from collections.abc import Iterator
from functools import partial

from turnmill.producer.channels.base import Channel
from turnmill.producer.channels.pipeline import Pipeline
from turnmill.schemas.channels.configuration import Configuration
from turnmill.schemas.channels.loading import Renewed, load_class
from turnmill.schemas.channels.sections.base import ChannelSection

#: kind → "module:Class", imported only where it is configured.
CHANNELS = {
    "chatwoot": "turnmill.producer.channels.chatwoot.channel:ChatwootChannel",
    "dingtalk": "turnmill.producer.channels.dingtalk:DingTalkChannel",
    "discord": "turnmill.producer.channels.discord.channel:DiscordChannel",
    "feishu": "turnmill.producer.channels.feishu.channel:FeishuChannel",
    "slack": "turnmill.producer.channels.slack.channel:SlackChannel",
    "teams": "turnmill.producer.channels.teams.channel:TeamsChannel",
    "teams-webhook": "turnmill.producer.channels.teams.webhook:TeamsWebhookChannel",
    "telegram": "turnmill.producer.channels.telegram.channel:TelegramChannel",
    "webhook": "turnmill.producer.channels.webhook:WebhookChannel",
    "wechat": "turnmill.producer.channels.wechat.channel:WeChatChannel",
    "wecom": "turnmill.producer.channels.wecom.channel:WeComChannel",
    "whatsapp": "turnmill.producer.channels.whatsapp:WhatsAppChannel",
}


def create_channel(name: str, section: ChannelSection) -> Channel:
    """Make the channel of a section.

    Raises:
        SettingsError: its library is not installed, or a secret is missing.
    """
    channel: Channel = load_class(CHANNELS, name, section)(name, section)
    return channel


def create_pipelines(configuration: Configuration) -> Iterator[Pipeline]:
    """One pipeline for each configured channel. Raises `SettingsError`."""
    for name, section in configuration.channels.items():
        renewed = Renewed(name, section, partial(create_channel, name, section))
        yield Pipeline(name, section, renewed.get)

"""Sections by kind: a new one is one file and one line here."""

from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.channels.sections.chatwoot import ChatwootSection
from turnmill.schemas.channels.sections.dingtalk import DingTalkSection
from turnmill.schemas.channels.sections.discord import DiscordSection
from turnmill.schemas.channels.sections.feishu import FeishuSection
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.channels.sections.teams import TeamsSection
from turnmill.schemas.channels.sections.teams_webhook import TeamsWebhookSection
from turnmill.schemas.channels.sections.telegram import TelegramSection
from turnmill.schemas.channels.sections.webhook import WebhookSection
from turnmill.schemas.channels.sections.wechat import WeChatSection
from turnmill.schemas.channels.sections.wecom import WeComSection
from turnmill.schemas.channels.sections.whatsapp import WhatsAppSection

SECTIONS: dict[str, type[ChannelSection]] = {
    "chatwoot": ChatwootSection,
    "dingtalk": DingTalkSection,
    "discord": DiscordSection,
    "feishu": FeishuSection,
    "slack": SlackSection,
    "teams": TeamsSection,
    "teams-webhook": TeamsWebhookSection,
    "telegram": TelegramSection,
    "webhook": WebhookSection,
    "wechat": WeChatSection,
    "wecom": WeComSection,
    "whatsapp": WhatsAppSection,
}

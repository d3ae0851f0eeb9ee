"""Adapters by the kind of their channel; a new one is one file and one line here."""

from turnmill.schemas.channels.loading import load_class
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Delivery

#: By `ChannelSection.kind`: module and class. Imported late: each needs its platform's library.
DELIVERIES = {
    "chatwoot": "turnmill.workers.delivery.chatwoot.adapter:ChatwootDelivery",
    "dingtalk": "turnmill.workers.delivery.dingtalk:DingTalkDelivery",
    "discord": "turnmill.workers.delivery.discord:DiscordDelivery",
    "feishu": "turnmill.workers.delivery.feishu.adapter:FeishuDelivery",
    "slack": "turnmill.workers.delivery.slack.adapter:SlackDelivery",
    "teams": "turnmill.workers.delivery.teams.adapter:TeamsDelivery",
    "teams-webhook": "turnmill.workers.delivery.teams.workflow:WorkflowDelivery",
    "telegram": "turnmill.workers.delivery.telegram.adapter:TelegramDelivery",
    "webhook": "turnmill.workers.delivery.webhook:WebhookDelivery",
    "wechat": "turnmill.workers.delivery.wechat.adapter:WeChatDelivery",
    "wecom": "turnmill.workers.delivery.wecom.adapter:WeComDelivery",
    "whatsapp": "turnmill.workers.delivery.whatsapp:WhatsAppDelivery",
}


def create_delivery(name: str, section: ChannelSection, settings: DeliverySettings) -> Delivery:
    """Make the adapter of a configured channel.

    Raises:
        SettingsError: its library is not installed, or a secret is missing.
    """
    delivery: Delivery = load_class(DELIVERIES, name, section)(name, section, settings)
    return delivery

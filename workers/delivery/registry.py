"""Adapters by the kind of their channel; a new one is one file and one line here."""

from turnmill.schemas.channels.loading import load_class
from turnmill.schemas.channels.sections import ChannelSection
from turnmill.schemas.settings import DeliverySettings
from turnmill.workers.delivery.base import Delivery

#: By `ChannelSection.kind`: module and class. Imported late: each needs its platform's library.
DELIVERIES = {
    "feishu": "turnmill.workers.delivery.feishu.adapter:FeishuDelivery",
    "slack": "turnmill.workers.delivery.slack.adapter:SlackDelivery",
    "telegram": "turnmill.workers.delivery.telegram.adapter:TelegramDelivery",
    "webhook": "turnmill.workers.delivery.webhook:WebhookDelivery",
    "whatsapp": "turnmill.workers.delivery.whatsapp:WhatsAppDelivery",
}


def create_delivery(name: str, section: ChannelSection, settings: DeliverySettings) -> Delivery:
    """Make the adapter of a configured channel.

    Raises:
        SettingsError: its library is not installed, or a secret is missing.
    """
    delivery: Delivery = load_class(DELIVERIES, name, section)(name, section, settings)
    return delivery

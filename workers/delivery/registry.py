"""Adapters by the kind of their channel; a new one is one file and one line here."""

from importlib import import_module
from typing import Any

from turnmill.schemas.channels.sections import ChannelSection
from turnmill.schemas.errors import SettingsError
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
    module_name, _, class_name = DELIVERIES[section.kind].partition(":")
    try:
        kind: Any = getattr(import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("turnmill"):
            raise
        raise SettingsError(
            f"Channel {name!r} needs {error.name}: pip install 'turnmill[{section.kind}]'"
        ) from None
    delivery: Delivery = kind(name, section, settings)
    return delivery

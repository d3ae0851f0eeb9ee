"""Adapters by the kind of their channel; a new one is one file and one line here."""

from collections.abc import Iterator, Mapping
from functools import partial

import structlog

from turnmill.schemas.channels.configuration import Configuration
from turnmill.schemas.channels.loading import Renewed, load_class
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import SettingsError
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

log = structlog.get_logger()


class Deliveries(Mapping[str, Delivery]):
    """The adapters of a process by channel, each with the latest secrets of its files."""

    def __init__(self, configuration: Configuration, settings: DeliverySettings) -> None:
        """Leave out channels that cannot be used; they hold up no others.

        Raises `SettingsError` if none can be.
        """
        self._renewed: dict[str, Renewed[Delivery]] = {}
        problem: SettingsError | None = None
        for name, section in configuration.channels.items():
            make = partial(create_delivery, name, section, settings)
            try:
                self._renewed[name] = Renewed(name, section, make)
            except SettingsError as error:
                problem = error
                log.error("channel.unusable", channel=name, reason=error.message)
        if not self._renewed and problem is not None:
            raise problem

    def __getitem__(self, name: str) -> Delivery:
        return self._renewed[name].get()

    def __iter__(self) -> Iterator[str]:
        return iter(self._renewed)

    def __len__(self) -> int:
        return len(self._renewed)


def create_delivery(name: str, section: ChannelSection, settings: DeliverySettings) -> Delivery:
    """Make the adapter of a configured channel.

    Raises:
        SettingsError: its library is not installed, or a secret is missing.
    """
    delivery: Delivery = load_class(DELIVERIES, name, section)(name, section, settings)
    return delivery

"""Simulators by kind; a new one is one file and one line here."""

from collections.abc import Callable
from importlib import import_module

from turnmill.producer.cli.channels.simulators.base import Simulated
from turnmill.schemas.channels.sections.base import ChannelSection

#: kind → "module:function", which makes a signed event of a text and, perhaps, a thread. Imported
#: late: the mocks come with it.
SIMULATORS = {
    "chatwoot": "turnmill.producer.cli.channels.simulators.chatwoot:simulate_chatwoot",
    "dingtalk": "turnmill.producer.cli.channels.simulators.dingtalk:simulate_dingtalk",
    "discord": "turnmill.producer.cli.channels.simulators.discord:simulate_discord",
    "feishu": "turnmill.producer.cli.channels.simulators.feishu:simulate_feishu",
    "slack": "turnmill.producer.cli.channels.simulators.slack:simulate_slack",
    "teams": "turnmill.producer.cli.channels.simulators.teams:simulate_teams",
    "teams-webhook": "turnmill.producer.cli.channels.simulators.teams_webhook:simulate_webhook",
    "telegram": "turnmill.producer.cli.channels.simulators.telegram:simulate_telegram",
    "webhook": "turnmill.producer.cli.channels.simulators.webhook:simulate_webhook",
    "wechat": "turnmill.producer.cli.channels.simulators.wechat:simulate_wechat",
    "wecom": "turnmill.producer.cli.channels.simulators.wecom:simulate_wecom",
    "whatsapp": "turnmill.producer.cli.channels.simulators.whatsapp:simulate_whatsapp",
}


def simulate(section: ChannelSection, text: str, thread: str | None) -> Simulated:
    """Make the event that the platform of a section would send.

    Raises:
        SettingsError: the secret that signs it is missing.
    """
    module, _, name = SIMULATORS[section.kind].partition(":")
    make: Callable[[ChannelSection, str, str | None], Simulated] = getattr(
        import_module(module), name
    )
    return make(section, text, thread)

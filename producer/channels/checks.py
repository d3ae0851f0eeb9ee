"""Check configured channels: secrets, bots, and what a platform says of its tokens."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module

from turnmill.producer.doctor.findings import Finding, Level, broken, ok
from turnmill.producer.operations.remedies import tenant_option
from turnmill.producer.tenants import Bot, find_tenant, list_bots
from turnmill.schemas.channels.configuration import load_configuration
from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import SettingsError, TurnmillError
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings

#: kind → "module:function" that asks the platform. Others have nobody to ask.
PLATFORM_CHECKS = {
    "chatwoot": "turnmill.producer.channels.chatwoot.check:check_chatwoot",
    "dingtalk": "turnmill.producer.channels.dingtalk_check:check_dingtalk",
    "discord": "turnmill.producer.channels.discord.check:check_discord",
    "feishu": "turnmill.producer.channels.feishu.check:check_feishu",
    "slack": "turnmill.producer.channels.slack.check:check_slack",
    "teams": "turnmill.producer.channels.teams.check:check_teams",
    "telegram": "turnmill.producer.channels.telegram.check:check_telegram",
    "wechat": "turnmill.producer.channels.wechat.check:check_wechat",
    "wecom": "turnmill.producer.channels.wecom.check:check_wecom",
    "whatsapp": "turnmill.producer.channels.whatsapp_check:check_whatsapp",
}

#: kind → "module:function" that asks the platform whether a bot's policies can be kept there.
POLICY_CHECKS = {"slack": "turnmill.producer.channels.slack.check:check_policies"}

#: kind → "module:function" that tells the platform where to send its events. On others a person
#: pastes the address.
REGISTRATIONS = {
    "discord": "turnmill.producer.channels.discord.check:register_discord",
    "telegram": "turnmill.producer.channels.telegram.check:register_telegram",
}


def check_channel(database: Database, section: ChannelSection) -> Iterator[Finding]:
    """Look at everything; the platform is asked only with all secrets at hand.

    Raises:
        ModuleNotFoundError: the platform's library is missing.
    """
    secrets = list(_secrets(section))
    yield from secrets
    yield (bot := _bot(database, section)).of("bot")
    if section.kind in PLATFORM_CHECKS and not any(each.fix for each in secrets):
        ask = _load(PLATFORM_CHECKS[section.kind])
        yield from (finding.of(section.kind) for finding in ask(section))
        if section.kind in POLICY_CHECKS and bot.level is Level.OK:
            ask = _load(POLICY_CHECKS[section.kind])
            policies = _bots(database, section)[section.bot].policies
            yield from (finding.of(section.kind) for finding in ask(section, policies))


def check_secrets(settings: Settings) -> Iterator[Finding]:
    """Look for mistakes in `turnmill.toml` and for secrets that this process does not get."""
    try:
        configuration = load_configuration(settings.config_path)
    except SettingsError as error:
        yield broken(error.message)
        return
    for name, section in configuration.channels.items():
        for finding in _secrets(section):
            if finding.level is not Level.OK:
                detail = f"channels.{name}.{finding.what}: {finding.detail}"
                yield replace(finding, detail=detail)


def check_bots(settings: Settings, database: Database) -> Iterator[Finding]:
    """Look for channels whose bot is missing."""
    try:
        configuration = load_configuration(settings.config_path)
    except SettingsError:
        # `check_secrets` tells.
        return
    for name, section in configuration.channels.items():
        finding = _bot(database, section)
        if finding.level is not Level.OK:
            yield replace(finding, detail=f"channels.{name}: {finding.detail}")


def register_channel(section: ChannelSection, address: str) -> Iterator[Finding]:
    """Tell the platform the address of its events.

    Raises:
        SettingsError: a secret is missing, or this platform's address is pasted by hand.
    """
    if section.kind not in REGISTRATIONS:
        raise SettingsError(
            f"{section.kind} has no call that registers an address. Paste it: {address}"
        )
    register = _load(REGISTRATIONS[section.kind])
    yield from (finding.of(section.kind) for finding in register(section, address))


def _load(place: str) -> Callable[..., Iterator[Finding]]:
    module, _, function = place.partition(":")
    found: Callable[..., Iterator[Finding]] = getattr(import_module(module), function)
    return found


def _secrets(section: ChannelSection) -> Iterator[Finding]:
    for field, reference in section.secrets.items():
        try:
            reference.read()
            yield ok(f"from {reference.place}").of(field)
        except TurnmillError as error:
            yield broken(error.message, "Set it for every process of Turnmill.").of(field)


def _bots(database: Database, section: ChannelSection) -> dict[str, Bot]:
    """The bots of the channel's tenant by their names. Raises `TurnmillError`."""
    return {bot.name: bot for bot in list_bots(database, find_tenant(database, section.tenant))}


def _bot(database: Database, section: ChannelSection) -> Finding:
    try:
        bots = _bots(database, section)
    except TurnmillError as error:
        return broken(error.message)
    if section.bot in bots:
        return ok(f"{section.bot}, of the tenant {section.tenant}")
    return broken(
        f"the tenant {section.tenant} has no bot '{section.bot}'",
        f"Add [bots.{section.bot}] to the file and run 'turnmill channels apply', or make it: "
        f"turnmill bots save {shlex.quote(section.bot)}{tenant_option(section.tenant)}",
    )

"""Check one configured channel: its secrets, its bot, and what its platform says of the tokens."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from turnmill.producer.doctor.findings import Finding, broken, ok
from turnmill.producer.tenants import find_tenant, list_bots
from turnmill.schemas.channels.sections import ChannelSection, SecretReference
from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.postgres.database import Database

#: kind → "module:function" that asks the platform. Others have nobody to ask.
PLATFORM_CHECKS = {
    "slack": "turnmill.producer.channels.slack.check:check_slack",
}


def check_channel(database: Database, section: ChannelSection) -> Iterator[Finding]:
    """Look at everything; the platform is asked only with all secrets at hand.

    Raises:
        ModuleNotFoundError: the platform's library is missing.
    """
    secrets = list(_secrets(section))
    yield from secrets
    yield _bot(database, section).of("bot")
    if section.kind in PLATFORM_CHECKS and not any(each.fix for each in secrets):
        module, _, function = PLATFORM_CHECKS[section.kind].partition(":")
        ask: Any = getattr(import_module(module), function)
        yield from (finding.of(section.kind) for finding in ask(section))


def _secrets(section: ChannelSection) -> Iterator[Finding]:
    for field in type(section).model_fields:
        reference = getattr(section, field)
        if isinstance(reference, SecretReference):
            try:
                reference.read()
                yield ok(f"from {reference.place}").of(field)
            except TurnmillError as error:
                yield broken(error.message, "Set it for every process of Turnmill.").of(field)


def _bot(database: Database, section: ChannelSection) -> Finding:
    try:
        bots = list_bots(database, find_tenant(database, section.tenant))
    except TurnmillError as error:
        return broken(error.message)
    if section.bot in {bot.name for bot in bots}:
        return ok(f"{section.bot}, of the tenant {section.tenant}")
    return broken(
        f"the tenant {section.tenant} has no bot '{section.bot}'",
        "Add [bots.…] to the file and run 'turnmill channels apply', or 'turnmill bots save'.",
    )

"""The bots of `turnmill.toml`, brought into the database."""

from turnmill.producer.tenants import ensure_defaults, find_tenant, save_bot
from turnmill.schemas.channels.configuration import Configuration
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import Settings


def save_bots(
    database: Database, settings: Settings, configuration: Configuration
) -> list[tuple[str, str]]:
    """Save each bot in the tenants of the channels that use it, and return tenants and names.

    A bot that no channel uses is saved for the tenant of the settings. Bots that the file does not
    name stay as they are.

    Raises:
        NotFound: a channel's tenant is missing.
        InvalidInput: a name is empty or too long.
    """
    ensure_defaults(database, settings)
    saved = []
    for name, bot in configuration.bots.items():
        users = {each.tenant for each in configuration.channels.values() if each.bot == name}
        for tenant in sorted(users or {settings.tenant}):
            save_bot(
                database,
                find_tenant(database, tenant),
                name,
                bot.model or settings.engine.model_name,
                bot.instructions,
                bot.params,
                policies=bot.policies,
            )
            saved.append((tenant, name))
    return saved

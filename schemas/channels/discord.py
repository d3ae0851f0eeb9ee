"""What Discord wants of every caller of its API."""

from turnmill.schemas.store.fleet.release import RELEASE

#: Calls without a name of this form, an address and a version, may be blocked; Turnmill has no
#: address of its own. https://docs.discord.com/developers/reference#user-agent
USER_AGENT = f"DiscordBot (https://turnmill.example, {RELEASE})"

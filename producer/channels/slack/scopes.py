"""What the app needs in Slack: the manifest asks for it, and `turnmill channels check` compares."""

#: Scopes of the bot's token, and what each is for. https://docs.slack.dev/reference/scopes
BOT_SCOPES = {
    "app_mentions:read": "to be told of mentions",
    "assistant:write": "to show a status, and answer in the assistant pane",
    "channels:history": "to read threads of public channels",
    "chat:write": "to answer",
    "commands": "to have a slash command",
    "files:read": "to read images and voice messages",
    "groups:history": "to read threads of private channels",
    "im:history": "to read direct messages",
    "mpim:history": "to read group messages",
    "reactions:read": "to count thumbs as ratings",
}
#: What only apps need whose bot has the policy `voice_replies`.
VOICE_SCOPE = "files:write"

#: Events that the bot subscribes to. https://docs.slack.dev/reference/events
BOT_EVENTS = (
    "app_mention",
    "assistant_thread_context_changed",
    "assistant_thread_started",
    "message.channels",
    "message.groups",
    "message.im",
    "message.mpim",
    "reaction_added",
    "reaction_removed",
)

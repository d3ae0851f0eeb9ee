"""Replies to Microsoft Teams, by the Bot Connector and by a workflow."""

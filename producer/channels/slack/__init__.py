"""Slack: events, slash commands and buttons, by HTTP or socket mode."""

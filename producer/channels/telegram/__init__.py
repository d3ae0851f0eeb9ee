"""Telegram: updates of the Bot API."""

"""Telegram: the Bot API it serves, and the updates it sends."""

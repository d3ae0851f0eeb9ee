"""Replies to Telegram."""

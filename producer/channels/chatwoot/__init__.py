"""Chatwoot: the way in."""

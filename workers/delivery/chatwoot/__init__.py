"""Chatwoot: the way out."""

"""Channels: how events of platforms come in."""

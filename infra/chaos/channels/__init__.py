"""Storms through channels: a platform that fails, events, and the messages that it shows."""

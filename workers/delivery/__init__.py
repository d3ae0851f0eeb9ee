"""Bring replies and notices to channels: `turnmill deliver`."""

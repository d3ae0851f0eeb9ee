"""The bots that come with Turnmill."""

"""Signed events as the platforms would send them, one file a kind."""

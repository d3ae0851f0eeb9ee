"""Stand-ins for platforms, for tests, demos and trying a bot without an account."""

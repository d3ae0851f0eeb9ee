"""Use cases of what is remembered of users."""

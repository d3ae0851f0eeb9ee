"""Tables and statements of what is remembered of users, and of forgetting them."""

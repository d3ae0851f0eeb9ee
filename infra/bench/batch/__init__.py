"""A large batch, watched and steered while it runs."""

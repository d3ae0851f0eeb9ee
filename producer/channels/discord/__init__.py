"""Discord: interactions, which are commands and pressed buttons."""

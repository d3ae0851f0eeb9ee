"""Commands about channels, conversations and their people."""

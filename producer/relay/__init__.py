"""The relay: from the outbox to the broker, and hints that the broker lost."""

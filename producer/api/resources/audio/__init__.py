"""`/v1/audio`: sounds that are no part of a message."""

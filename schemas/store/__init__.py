"""The statements that change a turn's state or owe the broker a hint, each in one place."""

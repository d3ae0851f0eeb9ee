"""Commands about single turns."""

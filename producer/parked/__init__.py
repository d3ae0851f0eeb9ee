"""Parked turns: list them, read one, replay or drop them."""

"""Calls to platforms over HTTP, and the tokens for them."""

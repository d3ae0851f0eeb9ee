"""Embedders: vectors of texts, for a search by meaning."""

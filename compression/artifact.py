"""Artifacts: compressed models with the manifest of how they were made. Needs no torch."""

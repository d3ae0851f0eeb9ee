"""Commands that make, measure and promote smaller models."""

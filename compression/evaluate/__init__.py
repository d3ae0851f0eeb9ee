"""Measure what a compressed model costs and what it gains."""

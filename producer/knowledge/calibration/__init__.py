"""Calibration: a gate is fitted to its collection, without labels from anybody."""

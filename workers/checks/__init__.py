"""Checks: what a text holds that a policy wants flagged, masked or blocked; one file a check."""

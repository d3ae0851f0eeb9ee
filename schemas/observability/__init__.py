"""Logs without secrets, metrics, probes, and the list that Prometheus reads."""

"""Slack: the Web API it serves, and the events it sends."""

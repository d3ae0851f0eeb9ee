"""Feishu: the events that it sends."""

"""Replies by an official account of WeChat."""

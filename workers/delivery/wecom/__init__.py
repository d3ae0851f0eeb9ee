"""Replies by an application of WeCom."""

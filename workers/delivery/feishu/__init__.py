"""Replies in Feishu: cards that are updated while they are written."""

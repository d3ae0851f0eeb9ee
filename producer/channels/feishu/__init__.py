"""Feishu: encrypted events, and the buttons of cards."""

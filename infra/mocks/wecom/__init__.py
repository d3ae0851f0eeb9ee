"""WeCom: the messages that it sends, and its API."""

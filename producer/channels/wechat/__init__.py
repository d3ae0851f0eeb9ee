"""WeChat: encrypted messages to an official account."""

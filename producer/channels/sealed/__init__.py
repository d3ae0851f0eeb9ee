"""Encrypted messages in XML, as WeCom and WeChat send them."""

"""Commands that measure replies, and one bot beside another."""

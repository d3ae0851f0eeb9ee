"""What a reply may not show, and what an engine may not read."""

"""What a search of a collection adds to a turn."""

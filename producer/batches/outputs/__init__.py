"""Files of results: where they may be written, and one writer a format."""

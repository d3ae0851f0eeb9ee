"""What it costs that a reply is held to a format."""

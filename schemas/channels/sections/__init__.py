"""What a channel needs to be configured, one file a kind."""

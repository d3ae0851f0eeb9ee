"""What producers and workers agree on about channels: configuration, events, deliveries."""

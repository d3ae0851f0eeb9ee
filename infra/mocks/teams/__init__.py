"""Microsoft Teams: the activities that it sends, and the services that a bot calls."""

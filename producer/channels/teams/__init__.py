"""Microsoft Teams: activities of the Bot Framework."""

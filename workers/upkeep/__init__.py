"""What every worker process does beside its turns: rescue, prune, stand by."""

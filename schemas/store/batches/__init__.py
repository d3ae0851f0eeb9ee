"""What batches need of the store: counters of their turns, and sweeps through them."""

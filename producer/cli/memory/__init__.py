"""`turnmill users`."""

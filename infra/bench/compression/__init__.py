"""`turnmill bench compression`: every recipe on one model, as one table."""

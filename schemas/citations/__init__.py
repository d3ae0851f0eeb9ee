"""Citations: what replies are based on, and where they say so."""

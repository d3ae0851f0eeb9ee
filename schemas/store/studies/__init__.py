"""Studies: people rate replies, and do not learn who wrote them."""

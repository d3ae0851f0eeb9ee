"""Studies: people rate replies, one by one or in pairs, without knowing who wrote them."""

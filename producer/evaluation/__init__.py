"""How good replies are: metrics of files and of stored turns, and one bot beside another."""

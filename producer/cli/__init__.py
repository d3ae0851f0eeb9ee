"""The `turnmill` command. Each command imports what it runs when it runs: `turnmill api`
never loads an engine, and `turnmill --help` answers at once."""

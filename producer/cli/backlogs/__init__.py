"""How a backlog file is read and what it becomes: options and a preview."""

"""What can be broken, and how: processes, networks, clocks, tables, messages."""

"""The way to PostgreSQL: connections, its clock, and whether a server is suitable."""

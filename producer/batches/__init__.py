"""Backlog files: from a file's rows to turns, and from replies to a file of results."""

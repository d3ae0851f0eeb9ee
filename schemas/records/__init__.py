"""Rows out of files, one file a format: a stream of rows, with the line of each."""

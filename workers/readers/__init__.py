"""Documents out of files, one file a format."""

"""What lists are to programs: the shapes that `--json` prints."""

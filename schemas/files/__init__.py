"""Files: their rows, and the storage that has their bytes."""

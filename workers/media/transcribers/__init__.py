"""Speech to text, one adapter a file."""

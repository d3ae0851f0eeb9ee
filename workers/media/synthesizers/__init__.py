"""Text to speech, one adapter a file."""

"""The text of images, one adapter a file."""

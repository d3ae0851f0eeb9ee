"""Images, sound and files in what is accepted."""

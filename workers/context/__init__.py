"""What is added to one turn's prompt: passages of its bot's knowledge."""

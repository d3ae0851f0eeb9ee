"""What keeps replies and stored texts from doing harm, as far as producer and workers share it."""

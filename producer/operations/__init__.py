"""What operators look at and steer: lanes, workers, the queue, single turns."""

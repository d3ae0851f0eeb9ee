"""What a process takes from its surroundings, and children that do not outlive it."""

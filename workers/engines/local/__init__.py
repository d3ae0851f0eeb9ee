"""What engines share that step a model themselves: batching, scheduling, the process that steps."""

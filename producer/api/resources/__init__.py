"""One router a resource. Handlers call use cases and nothing else."""

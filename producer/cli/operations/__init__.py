"""Commands of operators: the status, lanes and workers."""
